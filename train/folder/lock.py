"""One run at a time in a folder, by a lock that ends with its process, however that ends."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from train.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. On Windows nothing is locked.

    Raises:
        UserError: If another process is in it.
        OSError: If the folder cannot be written.
    """
    descriptor = _open_and_lock(folder / NAME)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        with suppress(OSError):  # while it is locked, so that nobody else holds a file without a name
            (folder / NAME).unlink()
        os.close(descriptor)


def _open_and_lock(path: Path) -> int:
    no_link = getattr(os, "O_NOFOLLOW", 0)  # or a file elsewhere would be emptied
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | no_link, 0o666)
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(path, descriptor):
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise UserError(
                f"--save {path.parent} is in use by {owner}; wait for it, or choose another folder"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still_there(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is the one of that name, and not one that its owner has removed since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
