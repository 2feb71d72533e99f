"""Preparations: each changes something in a folder, mostly in its run `run`, before a command line is run there."""

import json
import os
from collections.abc import Callable
from pathlib import Path

Preparation = Callable[[Path], object]
TERABYTE = 10**12


def put(path: Path, content: str | bytes) -> None:
    """Replace a file by bytes or text, or by what the words "folder", "pipe" and "terabyte" stand for."""
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
    """A preparation: a file is replaced, see `put`."""
    return lambda here: put(here / name, content)


def linked(name: str, target: str) -> Preparation:
    """A preparation: a new symbolic link."""
    return lambda here: (here / name).symlink_to(target)


def without(*names: str) -> Preparation:
    """A preparation: some files of the run are removed."""

    def prepare(here: Path) -> None:
        for name in names:
            (here / "run" / name).unlink()

    return prepare


def changed(*, flags: dict[str, object] | None = None, **values: object) -> Preparation:
    """A preparation: other values in config.json, and other values of its flags."""

    def prepare(here: Path) -> None:
        path = here / "run/config.json"
        config = json.loads(path.read_text())
        config["flags"] |= flags or {}
        path.write_text(json.dumps(config | values))

    return prepare


def recorded(**flags: object) -> Preparation:
    """A preparation: other values of the flags in config.json."""
    return changed(flags=flags)
