"""The file NAME.part, which keeps what has arrived of a download, and which one program at a time may write."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from data.known_files import digest_of

LOOK_AGAIN_SECONDS = 0.2  # at a file that another program is downloading


class Part:
    """An open part file.

    Attributes:
        path: Its path.
        size: Bytes that it holds.
    """

    def __init__(self, path: Path, file: BufferedRandom):
        self.path = path
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def add(self, piece: bytes) -> None:
        """Append bytes; they stay even if this program is killed."""
        self._file.write(piece)
        self._file.flush()
        self.size += len(piece)

    def clear(self) -> None:
        """Remove all bytes."""
        self._file.seek(0)
        self.size = self._file.truncate(0)

    def digest(self) -> str:
        """The md5 digest of all bytes, in hexadecimal digits."""
        self._file.seek(0)
        return digest_of(self._file)  # which leaves the position at the end


@contextmanager
def open_part(path: Path, notify: Callable[[str], object]) -> Iterator[Part | None]:
    """Hold the part file of a path open and locked, as an earlier program has left it or empty.

    Yields None if another program has put the file itself in place. An empty part is removed at the end. Where the file
    system has no locks, the part has a name that no other program knows, and is removed after an error.

    Args:
        path: Where the whole file belongs.
        notify: Takes a line for the user if another program has to be waited for.

    Raises:
        OSError: If the file cannot be opened, or the part is a link, which could lead to somebody else's file.
    """
    partial, is_announced = path.with_name(f"{path.name}.part"), False
    while not path.exists():
        with open(partial, "r+b", opener=_create) as file:
            is_locked = _lock(file)
            if is_locked and not _is_at(partial, file):
                continue  # another program has just given it the name of the whole file
            if is_locked is not False:
                part = Part(partial, file)
                try:
                    if is_locked and not path.exists():
                        yield part
                        return
                finally:
                    if not part.size:
                        with suppress(OSError):
                            partial.unlink()
        if is_locked is None:
            with _private_part(path) as part:
                yield part
            return
        if not is_locked and not is_announced:
            notify(f"Waiting for another program that is downloading {str(path)!r}")
            is_announced = True
        time.sleep(LOOK_AGAIN_SECONDS)
    yield None


@contextmanager
def _private_part(path: Path) -> Iterator[Part]:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with partial.open("x+b") as file:
            yield Part(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _lock(file: BufferedRandom) -> bool | None:
    """Lock a file until it is closed; return False if another program has locked it, and None if there are no locks."""
    from filelock import lock_descriptor  # takes a while to import, which few runs need

    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return None


def _is_at(path: Path, file: BufferedRandom) -> bool:
    """Return whether an open file still has its name."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
