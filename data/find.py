"""Image files below a folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.decode import suffixes
from data.errors import DataError, MissingData


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
        images: Paths of image files, sorted.
        skipped: Paths that are hidden, or whose names have another ending.
    """

    images: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_images(folder: Path, *, strict: bool = True) -> Found:
    """Look for image files in a folder and in all folders below it, along symbolic links too.

    Args:
        folder: Where to look.
        strict: Whether one image file that cannot be read is an error here. If not, it is among the images, and an
            error when it is read.

    Raises:
        DataError: If a folder cannot be read, or an image file.
    """
    found = Found()
    for entry in _everything(str(folder), above=()):
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in suffixes():
            found.skipped.append(entry.path)
        elif strict and not _is_readable(entry):
            advice = "mend the link" if entry.is_symlink() else "give it permission"
            raise DataError(f"{entry.path} cannot be read; {advice}, or take it away")
        elif entry.is_file() or not _is_readable(entry):
            found.images.append(entry.path)
        else:  # a pipe, which would be waited for
            found.skipped.append(entry.path)
    found.images.sort()
    return found


def _is_readable(entry: os.DirEntry) -> bool:
    return os.access(entry.path, os.R_OK)


def entries(folder: str | Path) -> list[os.DirEntry]:
    """What lies in a folder, sorted by name.

    Raises:
        MissingData: If it is none.
        DataError: If it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingData(f"there is no folder {folder}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


def is_folder(entry: os.DirEntry) -> bool:
    """Whether something is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _everything(folder: str, above: tuple[str, ...]) -> Iterator[os.DirEntry]:
    """Files below a folder, and hidden folders in place of what they hold. A link to a folder above leads nowhere."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in entries(folder):
        if is_folder(entry) and not entry.name.startswith("."):
            yield from _everything(entry.path, (*above, here))
        else:
            yield entry
