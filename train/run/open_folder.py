"""A folder that is held open: its files are replaced as a whole, and only while its path still leads to it."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from train.errors import RunError
from train.run.safeguards import if_supported, warn_once

Write = Callable[[BinaryIO], object]  # takes a file that is open for reading and writing

# Calls that take the descriptor of a folder and a name in it. Windows has none of them, and gets whole paths.
HAS_DIR_FD = {os.open, os.stat, os.unlink, os.mkdir, os.rename} <= os.supports_dir_fd
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


class OpenFolder:
    """A folder that stays the same, whatever happens to its path.

    Where the system allows it, names are looked up in the folder itself, so that another folder that takes its place is
    never written to, whenever that happens. Elsewhere the path is checked right before each rename.

    Args:
        path: The folder.
        parent: The open folder in which it is looked up by the last part of its path.

    Attributes:
        path: The path as it was given.
        marks: Descriptors by name of files that must be there as long as the folder is ours.

    Raises:
        OSError: If there is no such folder.
    """

    def __init__(self, path: Path, *, parent: "OpenFolder | None" = None):
        self.path = path
        self.marks: dict[str, int] = {}
        self._parent = parent
        self._descriptor: int | None = None
        parent_descriptor = None if parent is None else parent._dir_fd
        name = path if parent_descriptor is None else path.name
        # EACCES: a folder that may be written and not read, and any folder on Windows.
        with if_supported(f"{path} cannot be opened: {SYNC_LOST}", errno.EACCES, errno.EISDIR):
            self._descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), dir_fd=parent_descriptor)
        self._status = self._look()

    def _look(self) -> os.stat_result | None:
        """Return the status by which the folder is recognised; None where that is impossible."""
        with if_supported(f"{self.path}: {IDENTITY_LOST}"):
            status = self.path.stat() if self._descriptor is None else os.fstat(self._descriptor)
            if os.path.samestat(self.path.stat(), status):
                return status
            warn_once(f"{self.path}: {IDENTITY_LOST}", reason="its number changes")
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _dir_fd(self) -> int | None:
        return self._descriptor if HAS_DIR_FD else None

    def _at(self, name: str) -> str | Path:
        """Return the name or path to pass together with `dir_fd`."""
        return self.path / name if self._dir_fd is None else name

    def subfolder(self, name: str) -> "OpenFolder":
        """Open a folder in this one, and create it if it does not exist.

        Raises:
            OSError: If the system refuses.
            RunError: If this folder was replaced.
        """
        self.require_same()
        with suppress(FileExistsError):
            os.mkdir(self._at(name), dir_fd=self._dir_fd)
        return OpenFolder(self.path / name, parent=self)

    def open_file(self, name: str, flags: int) -> int:
        """Open a file in the folder and return its descriptor. A new file gets ordinary permissions.

        Raises:
            OSError: If the system refuses.
        """
        return os.open(self._at(name), flags, 0o666, dir_fd=self._dir_fd)

    def is_at(self, name: str, descriptor: int) -> bool:
        """Return whether an open file still has this name in the folder, and was neither removed nor replaced.

        Raises:
            OSError: If the system does not say.
        """
        return _is_same(os.fstat(descriptor), self._at(name), dir_fd=self._dir_fd)

    def require_same(self) -> None:
        """Make sure that the path still leads to this folder, and that nobody has removed or replaced its marks.

        Raises:
            RunError: If the folder is no longer ours.
        """
        if self._parent is not None:
            self._parent.require_same()
        try:
            with if_supported(f"{self.path}: {IDENTITY_LOST}"):
                self._require_same()
        except OSError as error:
            raise RunError(f"cannot look at {self.path}: {error.strerror or error}") from error

    def _require_same(self) -> None:
        if self._status is not None and not _is_same(self._status, self.path):
            if not os.path.lexists(self.path):
                raise RunError(f"{self.path} was moved or removed while the run was going on; nothing more was written")
            raise RunError(
                f"{self.path} was replaced while the run was going on; nothing was written into what stands there now"
            )
        for name, descriptor in self.marks.items():
            if not _is_same(os.fstat(descriptor), self.path / name):
                raise RunError(
                    f"{self.path / name} was removed or replaced while the run was going on, so that another run may "
                    "be in its folder now; nothing more was written"
                )

    def write(self, name: str, write: Write, *, keep: str | None = None) -> None:
        """Replace the contents of a file; a reader sees the old contents or the new ones, and never a mixture.

        Args:
            name: The file.
            write: Writes the new contents into a file that is open for reading and writing.
            keep: Name under which the old contents are kept. For a moment only that file exists, and none at `name`.

        Raises:
            RunError: If the system refuses (disk full, no such folder, ...), or the folder is no longer ours. The
                old file is untouched.
        """
        with self._explained(name), self._prepared(name, write) as temporary:
            self.require_same()
            if keep and self._has(name):
                self._rename(name, keep)
            self._rename(temporary, name)
            self._sync()

    def write_both(self, first: str, last: str, writes: Mapping[str, Write]) -> None:
        """Replace two files that belong together; a reader never sees an old one beside a new one.

        The last file does not exist while the first one is replaced. The new contents of both are on the disk by then.

        Raises:
            RunError: If the system refuses, or the folder is no longer ours.
        """
        with (
            self._explained(first),
            self._prepared(first, writes[first]) as temporary,
            self._explained(last),
            self._prepared(last, writes[last]) as temporary_last,
        ):
            self.require_same()
            self.discard(last)
            self._rename(temporary, first)
            self._rename(temporary_last, last)
            self._sync()

    def rename(self, name: str, other: str) -> None:
        """Give a file another name.

        Raises:
            RunError: If the system refuses, or the folder is no longer ours.
        """
        self.require_same()
        try:
            self._rename(name, other)
        except OSError as error:
            raise RunError(f"cannot rename {self.path / name} to {other}: {error.strerror or error}") from error

    def discard(self, name: str) -> None:
        """Remove a file that does no harm if it stays; where that is not allowed, a warning says so."""
        with (
            suppress(FileNotFoundError),
            if_supported(f"{self.path / name} cannot be removed, and stays", errno.EACCES),
        ):
            os.unlink(self._at(name), dir_fd=self._dir_fd)

    def discard_leftovers(self, names: tuple[str, ...]) -> None:
        """Remove unfinished files of these names that killed processes have left.

        Raises:
            OSError: If the disk is broken.
        """
        found: list[str] = []
        with if_supported(f"{self.path} cannot be listed: what a killed run has left of its files stays", errno.EACCES):
            found = [path.name for path in self.path.iterdir()]
        for leftover in found:
            if any(is_temporary(leftover, name) for name in names):
                self.discard(leftover)

    @contextmanager
    def _prepared(self, name: str, write: Write) -> Iterator[str]:
        """Write the new contents to the disk under a unique name, and yield it; after an error the file is removed."""
        self.require_same()
        temporary = temporary_name(name)
        try:
            with self._open(temporary, "x+b") as file:
                write(file)
                file.flush()
                _sync_file(file)
            yield temporary
        except BaseException:
            with suppress(OSError):
                os.unlink(self._at(temporary), dir_fd=self._dir_fd)
            raise

    def _open(self, name: str, mode: str) -> Any:
        return open(self._at(name), mode, opener=lambda path, flags: os.open(path, flags, 0o666, dir_fd=self._dir_fd))

    def _has(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            os.stat(self._at(name), dir_fd=self._dir_fd)
            return True
        return False

    def _rename(self, name: str, other: str) -> None:
        os.replace(self._at(name), self._at(other), src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)

    def _sync(self) -> None:
        """Make renames survive a power cut."""
        if self._descriptor is not None:
            with if_supported(f"{self.path}: {SYNC_LOST}", errno.EBADF, errno.EISDIR, errno.EACCES):
                os.fsync(self._descriptor)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.require_same()  # or that is the reason
            reason = error.strerror or error
            raise RunError(f"cannot write {self.path / name}: {reason}; what is there is whole") from error


SYNC_LOST = "the names of files are not synced, so that a power cut may bring back older files"
IDENTITY_LOST = "a folder that takes this one's place while the program writes would not be noticed"


def atomic_write(path: Path, write: Write) -> None:
    """Replace a file in any folder as `OpenFolder.write` does.

    Raises:
        RunError: If the system refuses (disk full, no such folder, ...). The old file is untouched.
    """
    try:
        with OpenFolder(path.parent) as folder:
            folder.write(path.name, write)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what is there is whole") from error


def temporary_name(name: str) -> str:
    """Return a name for the unfinished file that no other process uses."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def is_temporary(found: str, name: str) -> bool:
    """Return whether a file was to become `name`. Earlier versions of this program put nothing between the two."""
    return found == f".{name}.tmp" or (found.startswith(f".{name}.") and found.endswith(".tmp"))


def _sync_file(file: BinaryIO) -> None:
    with if_supported("files are not synced, so that a power cut may damage the last ones"):
        os.fsync(file.fileno())


def _is_same(status: os.stat_result, path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Return whether a path leads to the file or folder with this status."""
    try:
        return os.path.samestat(status, os.stat(path, dir_fd=dir_fd))
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
