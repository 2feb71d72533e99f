"""Acquire the folder of a run: one run at a time may write into it, and only a new run or the one that is in it.

The lock belongs to an open file, `.lock` in the folder, and ends with the process that holds it, however that ends. The
package filelock locks it, on Windows too. This module looks the file up in the open folder, refuses links, and writes
the name of the owner into it.
"""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.run.config import CHECKPOINT, CONFIG, FILES, PREVIOUS, recorded_flags
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder
from train.run.safeguards import if_supported

LOCK = ".lock"
TRIES = 100  # to open and lock the file of that name before its owner removes it


def without_links(folder: Path) -> Path:
    """Resolve the links of a path once, so that the run stays in one folder even if a link is changed later.

    A path with a link that leads nowhere is returned as it is, so that no folder is created where a disk is not
    mounted.

    Raises:
        UserError: If the path is relative to a folder that does not exist any more.
    """
    try:
        if any(path.is_symlink() and not path.exists() for path in (folder, *folder.parents)):
            return folder
        real = os.path.realpath(folder)
        return folder if real == os.path.normpath(folder.absolute()) else Path(real)
    except OSError as error:
        raise UserError(f"--save {folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def acquire(
    folder: Path, identity: RunIdentity, processes: ProcessGroup = SINGLE_PROCESS, *, resume: bool
) -> Iterator[RunFolder]:
    """Acquire a folder for a run, and create it if it does not exist. No other run may write into it meanwhile.

    Folders that were created here are removed again if the run ends before it has written anything.

    Args:
        folder: The save directory.
        identity: The settings of the run.
        processes: The processes of the run, of which the main process holds the lock for all.
        resume: Whether the run may continue the one that is in the folder.

    Raises:
        UserError: If the folder cannot be written, is in use, or holds a run that this one may not continue.
    """
    with ExitStack() as stack:
        of_main_process = processes.on_main_only(stack.enter_context, _acquired(folder, identity, processes, resume))
        yield of_main_process or RunFolder(folder, processes=processes, identity=identity)


@contextmanager
def _acquired(folder: Path, identity: RunIdentity, processes: ProcessGroup, resume: bool) -> Iterator[RunFolder]:
    with ExitStack() as stack:
        try:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"--save is {str(folder)!r}, but must be a folder, not a file")
            stack.enter_context(_created(folder))
            directory = stack.enter_context(locked(folder))
        except OSError as error:
            raise UserError(f"--save {folder} cannot be written: {error.strerror or error}") from error
        is_new = not _find_checkpoint(folder, resume=resume)
        _require_same_run(folder, identity)
        run = RunFolder(folder, directory, processes, identity=identity, is_new=is_new)
        run.clear()
        directory.require_same()
        yield run
        directory.require_same()  # or nobody would learn that the files of the run are elsewhere


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; remove those that were created and are empty at the end."""
    created: list[tuple[Path, os.stat_result]] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir(exist_ok=True)
            created.append((path, path.stat()))
        yield
    finally:
        for path, status in reversed(created):
            with suppress(OSError):  # not empty
                if os.path.samestat(path.stat(), status):
                    path.rmdir()


def _find_checkpoint(folder: Path, *, resume: bool) -> bool:
    """Return whether there is a checkpoint to continue from.

    Raises:
        UserError: If the folder holds files of a run, but may not or cannot be resumed.
    """
    found = [name for name in FILES if (folder / name).exists()]
    if found and not resume:
        raise UserError(
            f"--save {folder} already holds a run ({', '.join(found)}): continue it with --resume True, "
            "or choose another folder"
        )
    has_checkpoint = CHECKPOINT in found or PREVIOUS in found
    if has_checkpoint and CONFIG in found and recorded_flags(folder).get("seed") is None:
        raise UserError(f"{folder / CONFIG} names no seed, without which the run cannot be continued")
    missing = CONFIG if CONFIG not in found else CHECKPOINT
    if found and found != [CONFIG] and not (CONFIG in found and has_checkpoint):
        raise UserError(
            f"--save {folder} holds {', '.join(found)} but no {missing}, so it cannot be continued; "
            "choose another folder"
        )
    return has_checkpoint


def _require_same_run(folder: Path, identity: RunIdentity) -> None:
    """Make sure that the run in a folder, if there is one, is this run.

    Raises:
        UserError: If a setting that decides its results differs, or config.json cannot be read.
    """
    recorded = recorded_flags(folder)
    difference = identity.first_difference(recorded) if recorded else None
    if difference is None:
        return
    flag, its_value, value = difference
    if flag in identity.growing:
        raise UserError(f"--{flag} is {value}, but the run in {folder} has {its_value}; it may only grow")
    raise UserError(
        f"--{flag} is {value!r}, but the run in {folder} has {its_value!r}; "
        "continue it as it is, or choose another folder"
    )


@contextmanager
def locked(path: Path) -> Iterator[OpenFolder]:
    """Hold a folder open and locked, so that other processes are kept out.

    Where the file system offers no locks, a warning says so. A run that begins there replaces the lock file that it
    finds by one of its own, so that an earlier run that is still alive notices that it has lost the folder.

    Raises:
        UserError: If another process holds the lock.
        OSError: If the folder cannot be written.
    """
    with OpenFolder(path) as folder:
        descriptor = _open_and_lock(folder)
        if descriptor is None:
            yield folder
            return
        try:
            _write_owner(descriptor)
            with if_supported(None):
                if folder.is_at(LOCK, descriptor):
                    folder.marks[LOCK] = descriptor
            yield folder
        finally:
            folder.marks.clear()
            try:
                with suppress(OSError):  # while it is locked, so that nobody else locks a file without a name
                    if folder.is_at(LOCK, descriptor):
                        folder.discard(LOCK)
            finally:
                os.close(descriptor)


def _open_and_lock(folder: OpenFolder) -> int | None:
    """Return a descriptor of the lock file; None where there can be no such file."""
    for tries_left in reversed(range(TRIES)):
        descriptor = _open(folder)
        if descriptor is None:
            return None
        try:
            is_locked = _lock(descriptor, folder.path)
            is_there = True
            with if_supported(None):  # `OpenFolder` has given the warning
                is_there = folder.is_at(LOCK, descriptor)
            # If it is never there, the files of this system have no lasting numbers.
            if is_locked and (is_there or not tries_left):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not is_locked:
            folder.discard(LOCK)
            return _open(folder)
    return None


def _open(folder: OpenFolder) -> int | None:
    """Open the lock file and create it if it is missing; return None where the system has no such files."""
    no_link = getattr(os, "O_NOFOLLOW", 0)  # or a file elsewhere would be emptied
    with if_supported(_unlocked(folder.path)):
        try:
            return folder.open_file(LOCK, os.O_RDWR | os.O_CREAT | no_link)
        except PermissionError as error:
            try:  # a file that another user's run has left may be read-only, which is enough to lock it
                return folder.open_file(LOCK, os.O_RDONLY | no_link)
            except FileNotFoundError:
                raise error from None
    return None


def _lock(descriptor: int, path: Path) -> bool:
    """Lock a file; return False where the system does not offer that.

    Raises:
        UserError: If another process holds the lock.
        OSError: If the system fails.
    """
    # ENOLCK: no server for locks. EBADF: on NFS, a file that is open for reading only.
    with if_supported(_unlocked(path), errno.ENOLCK, errno.EBADF):
        if not lock_descriptor(descriptor, blocking=False):
            owner = _read_owner(descriptor) or "another process"
            raise UserError(f"--save {path} is in use by {owner}; wait for it, or choose another folder")
        return True
    return False


def _read_owner(descriptor: int) -> str:
    """Return the first line of a lock file, which names its owner; an empty text if it cannot be read."""
    with suppress(OSError):  # Windows lets nobody else read what is locked
        lines = os.read(descriptor, 200).decode(errors="replace").splitlines()
        return lines[0].strip() if lines else ""
    return ""


def _write_owner(descriptor: int) -> None:
    """Name this process in the first line of the lock file, for those who find it in use."""
    with if_supported(None, errno.EBADF):  # where a file cannot be truncated, older text stays below that line
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


def _unlocked(path: Path) -> str:
    return f"{path} cannot be locked: a second run in this folder would not be noticed"
