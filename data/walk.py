"""Walk a folder tree for image files, along symbolic links, without hidden folders and those of systems."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from data.arrays import is_array
from data.decode import suffixes
from data.errors import DataError, MissingData

# Folders, in lower case, in which systems and file managers keep thumbnails and other copies of files. The names of
# other such folders begin with a dot.
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
class FoundFiles:
    """The files below a folder.

    Attributes:
        images: Paths of image files, sorted.
        skipped: Paths that are hidden, belong to a system or have another suffix.
        unreadable: Images that may not be read, or are links to nothing.
    """

    images: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def find_images(folder: Path, *, arrays: bool = False) -> FoundFiles:
    """Find the image files in a folder and in all folders below it, along symbolic links too.

    Args:
        folder: Folder to search.
        arrays: Whether to find .npy files instead of image files.

    Raises:
        DataError: If a folder cannot be read.
    """
    found = FoundFiles()
    for entry in _walk(str(folder), parents=()):
        if not is_named_as_image(entry.name, arrays=arrays):
            found.skipped.append(entry.path)
        elif not os.access(entry.path, os.R_OK):
            found.images.append(entry.path)
            found.unreadable.append(entry.path)
        elif entry.is_file():
            found.images.append(entry.path)
        else:  # a pipe, from which reading would wait forever
            found.skipped.append(entry.path)
    found.images.sort()
    return found


def count_images(folder: Path, *, most_files: int) -> tuple[int, bool]:
    """Count image files by their names, in a folder and below.

    Args:
        folder: Folder to search. A part of it that cannot be read ends the search.
        most_files: Number of files of any kind after which the search ends.

    Returns:
        The number of images, and whether fewer files than `most_files` were seen.
    """
    number = files = 0
    with suppress(DataError):
        for entry in islice(_walk(str(folder), parents=()), most_files):
            files += 1
            number += is_named_as_image(entry.name)
    return number, files < most_files


def is_ignored(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to a system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def is_named_as_image(name: str, *, arrays: bool = False) -> bool:
    """Return whether a file of this name is taken for an image, or with `arrays` for an array."""
    if is_ignored(name):
        return False
    return is_array(name) if arrays else Path(name).suffix.lower() in suffixes()


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """List a folder, sorted by name.

    Raises:
        MissingData: If there is no such folder.
        DataError: If it cannot be read.
    """
    try:
        with os.scandir(os.fspath(folder)) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingData(f"there is no folder {folder}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and those of a system.

    Raises:
        DataError: If the folder cannot be read.
    """
    return [entry.name for entry in entries(folder) if is_folder(entry) and not is_ignored(entry.name)]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(folder: str, parents: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Yield all files below a folder, and each ignored folder as one entry. Links back to a parent are not followed."""
    here = os.path.realpath(folder)
    if here in parents:
        return
    for entry in entries(folder):
        if is_folder(entry) and not is_ignored(entry.name):
            yield from _walk(entry.path, (*parents, here))
        else:
            yield entry
