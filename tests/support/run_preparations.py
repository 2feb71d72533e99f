"""Preparations: each puts something in a folder, most of them into the run in `run`, that a command line then meets."""

import json
import os
from collections.abc import Callable
from pathlib import Path

Preparation = Callable[[Path], object]
TERABYTE = 10**12


def put(path: Path, content: str | bytes) -> None:
    """Put something in the place of a file: bytes, text, or what a word stands for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    match content:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "terabyte":
            with path.open("wb") as file:
                file.truncate(TERABYTE)
        case str():
            path.write_text(content)
        case bytes():
            path.write_bytes(content)


def nothing(here: Path) -> None:
    """No preparation."""


def placed(name: str, content: str | bytes) -> Preparation:
    """Something in the place of a file."""
    return lambda here: put(here / name, content)


def linked(name: str, target: str) -> Preparation:
    """A symbolic link."""
    return lambda here: (here / name).symlink_to(target)


def lacking(*names: str) -> Preparation:
    """Some files of the run are gone."""

    def prepare(here: Path) -> None:
        for name in names:
            (here / "run" / name).unlink()

    return prepare


def changed(*, flags: dict[str, object] | None = None, **values: object) -> Preparation:
    """Other values in config.json, and other values among its flags."""

    def prepare(here: Path) -> None:
        path = here / "run/config.json"
        config = json.loads(path.read_text())
        config["flags"] |= flags or {}
        path.write_text(json.dumps(config | values))

    return prepare


def recorded(**flags: object) -> Preparation:
    """Other values among the flags of config.json."""
    return changed(flags=flags)
