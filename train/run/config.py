"""config.json of a run, read without trusting a byte of it, and the names of the files beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from train.errors import UserError

CONFIG, CHECKPOINT, RESULTS, MODEL, CURVES = "config.json", "checkpoint.pt", "results.csv", "model.pt", "curves.png"
PREVIOUS, DAMAGED = "checkpoint.previous.pt", "checkpoint.damaged.pt"
SUMMARY = "results.json"
FILES = (CONFIG, CHECKPOINT, PREVIOUS, RESULTS, MODEL, CURVES, SUMMARY)

LARGEST = 1_000_000  # bytes of config.json


def read_small(path: Path, *, largest: int) -> str | None:
    """Read a small text file that anybody may have written.

    Args:
        path: The file.
        largest: Its largest size in bytes.

    Returns:
        The text, or None if there is no such file.

    Raises:
        UserError: If the file cannot be read or is too large.
    """
    try:
        if path.exists() and not path.is_file():  # reading from a pipe would wait for a writer
            raise UserError(f"{path} cannot be read: it is not a file")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{path} cannot be read: it has more than {largest:,} bytes")
        return content.decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read config.json of the run in a folder, see `read_config_file`."""
    return read_config_file(folder / CONFIG)


def read_config_file(path: Path) -> dict[str, Any] | None:
    """Read config.json of a run, which may have another name by now.

    Returns:
        Everything in it, or None if there is no such file. "flags" is a dict of plain values by name.

    Raises:
        UserError: If the file cannot be read or does not hold such flags.
    """
    text = read_small(path, largest=LARGEST)
    if text is None:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; it should hold the flags of the run") from error
    flags = config.get("flags") if isinstance(config, dict) else None
    if not isinstance(flags, dict):
        raise UserError(f"{path} cannot be read: it should hold the flags of the run")
    for flag, value in flags.items():
        if isinstance(value, list | dict):
            raise UserError(f"{path} cannot be read: its flag {flag!r} should be text, a number, true, false or null")
    return config


def recorded_flags(folder: Path) -> dict[str, Any]:
    """Return the flags of the run in a folder; an empty dict if there is no run.

    Raises:
        UserError: If config.json cannot be read.
    """
    config = read_config(folder)
    return {} if config is None else config["flags"]


def texts(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return an entry of config.json that must be a list of at least one text.

    Raises:
        ValueError: If it is something else.
    """
    value = config.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is {short_repr(value)}, but must be a list of one or more texts")
    return tuple(value)


def counts(config: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return an entry of config.json that must map names to whole numbers.

    Raises:
        ValueError: If it is something else.
    """
    value = config.get(name)
    if not isinstance(value, dict) or not all(type(number) is int for number in value.values()):
        raise ValueError(f"{name} is {short_repr(value)}, but must be whole numbers by name")
    return value


def require_classes(classes: Sequence[str], recorded: Sequence[str], *, folder: Path) -> None:
    """Make sure that a data set has the classes, in the same order, that the run in a folder was trained on.

    Raises:
        UserError: If it has other classes.
    """
    if tuple(classes) != tuple(recorded):
        others = sorted({*classes} ^ {*recorded}) or ["their order"]
        raise UserError(
            f"the classes of the data are not those of the run in {folder}: {len(classes)} in place of "
            f"{len(recorded)}, and what differs is {short_repr(others)}"
        )


def require_recorded_data(folder: Path, *, classes: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Make sure, as far as config.json records it, that a resumed run gets the data that it began with.

    The test set may change, because nothing that was done so far depends on it.

    Args:
        folder: The folder of the run.
        classes: Names of the classes in the order of the logits.
        sizes: Numbers of images by use, "train" and "valid". Images that are held out for validation count as training
            images here.

    Raises:
        UserError: If the data set now has other classes or another number of images, or config.json cannot be used.
    """
    config = read_config(folder) or {}
    try:
        recorded = texts(config, "classes") if "classes" in config else tuple(classes)
        recorded_sizes = _sizes_before_split(config)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error
    require_classes(classes, recorded, folder=folder)
    for use in ("train", "valid"):
        earlier, now = recorded_sizes.get(use, sizes[use]), sizes[use]
        if now != earlier:
            raise UserError(
                f"the run in {folder} began with {earlier:,} images for {use} and the data set has {now:,} now; make "
                "it as it was, or begin another run"
            )


def _sizes_before_split(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of images in config.json, with those held out counted as training images again."""
    sizes = counts(config, "images") if "images" in config else {}
    if "train" in sizes and config["flags"].get("valid_size"):
        return {**sizes, "train": sizes["train"] + sizes.get("valid", 0), "valid": 0}
    return sizes
