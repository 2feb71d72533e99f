"""One run at a time in a folder, by a lock that ends with its process, however that ends."""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from train.errors import UserError
from train.run.open_folder import OpenFolder
from train.run.safeguards import optional

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # by somebody else
TRIES = 100  # to open and lock the file of that name before its owner removes it


@contextmanager
def locked(path: Path) -> Iterator[OpenFolder]:
    """Keep other processes out of a folder, and hold it open.

    Where the system offers no locks, a warning says so. A run that begins there then puts a lock file of its own in the
    place of the one that it finds, so that an earlier run, if it still goes on, sees that the folder is not its own any
    more.

    Raises:
        UserError: If another process is in it.
        OSError: If the folder cannot be written.
    """
    with OpenFolder(path) as folder:
        descriptor = _open_and_lock(folder)
        if descriptor is None:
            yield folder
            return
        try:
            _write_owner(descriptor)
            with optional(None):
                if folder.is_at(NAME, descriptor):
                    folder.marks[NAME] = descriptor
            yield folder
        finally:
            folder.marks.clear()
            try:
                with suppress(OSError):  # while it is locked, so that nobody else holds a file without a name
                    if folder.is_at(NAME, descriptor):
                        folder.discard(NAME)
            finally:
                os.close(descriptor)


def _open_and_lock(folder: OpenFolder) -> int | None:
    """A descriptor of the lock file, None where there can be none."""
    for tries_left in reversed(range(TRIES)):
        descriptor = _open(folder)
        if descriptor is None:
            return None
        try:
            is_locked = _lock(descriptor, folder.path)
            is_there = True
            with optional(None):  # `OpenFolder` has said so
                is_there = folder.is_at(NAME, descriptor)
            # A file that is another one each time is on a system where files have no lasting numbers.
            if is_locked and (is_there or not tries_left):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not is_locked:
            folder.discard(NAME)
            return _open(folder)
    return None


def _open(folder: OpenFolder) -> int | None:
    """The lock file, made if it is missing; None where the system has no such files."""
    no_link = getattr(os, "O_NOFOLLOW", 0)  # or a file elsewhere would be emptied
    with optional(_not_noticed(folder.path)):
        try:
            return folder.open_file(NAME, os.O_RDWR | os.O_CREAT | no_link)
        except PermissionError as error:
            try:  # what another user's run has left may be read only, which is enough to lock it
                return folder.open_file(NAME, os.O_RDONLY | no_link)
            except FileNotFoundError:
                raise error from None
    return None


def _lock(descriptor: int, path: Path) -> bool:
    """Lock a file; False where the system does not offer that."""
    # ENOLCK: no server for locks. EBADF: on NFS, a file that is open for reading only.
    with optional(_not_noticed(path), errno.ENOLCK, errno.EBADF):
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise
            lines = os.read(descriptor, 200).decode(errors="replace").splitlines()
            owner = lines[0].strip() if lines else ""
            raise UserError(
                f"--save {path} is in use by {owner or 'another process'}; wait for it, or choose another folder"
            ) from None
        return True
    return False


def _write_owner(descriptor: int) -> None:
    """Name this process in the first line of the lock file, for those who find it in use."""
    with optional(None, errno.EBADF):  # what cannot be cut stays below that line
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


def _not_noticed(path: Path) -> str:
    return f"{path} cannot be locked: a second run in this folder would not be noticed"
