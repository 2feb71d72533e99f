"""Image files below a folder."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from data.decode import suffixes
from data.errors import DataError, MissingData

# Folders, in small letters, in which systems and file managers keep thumbnails and other copies of files. Others of
# that kind are hidden.
SYSTEM_FOLDERS = (
    "@eadir",
    "#recycle",
    "#snapshot",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
        images: Paths of image files, sorted.
        skipped: Paths that are hidden or of a system, or whose names have another ending.
        unreadable: Those of `images` that may not be read, or are links that lead nowhere.
    """

    images: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def find_images(folder: Path) -> Found:
    """Look for image files in a folder and in all folders below it, along symbolic links too.

    Raises:
        DataError: If a folder cannot be read.
    """
    found = Found()
    for entry in _everything(str(folder), above=()):
        if not is_named_as_image(entry.name):
            found.skipped.append(entry.path)
        elif not os.access(entry.path, os.R_OK):
            found.images.append(entry.path)
            found.unreadable.append(entry.path)
        elif entry.is_file():
            found.images.append(entry.path)
        else:  # a pipe, which would be waited for
            found.skipped.append(entry.path)
    found.images.sort()
    return found


def count_images(folder: Path, *, most_files: int) -> tuple[int, bool]:
    """Count image files by their names, below a folder that is of no use otherwise.

    Args:
        folder: Where to look.
        most_files: Files of any kind after which the search ends.

    Returns:
        The number, and whether all files were looked at.
    """
    number = files = 0
    with suppress(DataError):  # a folder that cannot be read
        for entry in islice(_everything(str(folder), above=()), most_files):
            files += 1
            number += is_named_as_image(entry.name)
    return number, files < most_files


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or keeps what a system needs for itself."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_named_as_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not is_ignored(name) and Path(name).suffix.lower() in suffixes()


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
    """Files below a folder, and ignored folders in place of what they hold. A link to a folder above leads nowhere."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in entries(folder):
        if is_folder(entry) and not is_ignored(entry.name):
            yield from _everything(entry.path, (*above, here))
        else:
            yield entry
