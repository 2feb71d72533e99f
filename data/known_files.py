"""Files whose contents are known by their md5 digests, and how a complete one gets its name."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: Path relative to the data folder, with "/" between its parts.
        md5: md5 digest of its contents, in hexadecimal digits.
        url: Address of the file, or of the archive that contains it.
        inside: Path in the archive that contains it. Empty: the same as `path`.
        size: Its bytes. None: not known.
    """

    path: str
    md5: str
    url: str
    inside: str = ""
    size: int | None = None


def has_digest(path: Path, md5: str) -> bool:
    """Return whether a file exists and its contents have this md5 digest, in hexadecimal digits."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return digest_of(file) == md5


def digest_of(file: BufferedIOBase) -> str:
    """Return the md5 digest of an open file from its position to its end, in hexadecimal digits."""
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Create the folder of a file. After an error, the folders that were created here and are empty are removed."""
    new_folders = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for new_folder in new_folders:
                new_folder.rmdir()
        raise


def give_name(partial: Path, path: Path, md5: str) -> None:
    """Give a complete file its name, unless another process has put the same file in place.

    Raises:
        OSError: If the system refuses it, as Windows does while a file is open.
    """
    try:
        os.replace(partial, path)
    except OSError:
        if not has_digest(path, md5):
            raise
