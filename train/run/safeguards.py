"""Which refusals of a system end a run, and which only take a safeguard away from it.

Locks, syncs and the numbers of files guard a run against others, against power cuts and against folders that change
places. Not every file system has them all. A run that lacks one is told so once, and goes on. What the work itself
needs, and a disk that is full, broken or read-only (ENOSPC, EDQUOT, EIO, EROFS), is an error wherever it comes up.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from train.terminal import warn

# "There is no such thing here", whatever was asked for. EINVAL is the answer to an fsync of something that cannot be
# synced, EPERM that of a container which lets its programs make some calls only.
NOT_OFFERED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM})

_said: set[str] = set()


@contextmanager
def optional(lost: str | None, *further: int) -> Iterator[None]:
    """Go on after this block if the system does not offer what it asks for, with one warning for each process.

    Args:
        lost: The warning: what is not protected now. None: nothing is lost, and nothing is said.
        further: Error numbers that say the same of this call, and of others would not.

    Raises:
        OSError: Any other one.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_OFFERED and error.errno not in further:
            raise
        if lost is not None:
            warn_once(lost, reason=error.strerror or os.strerror(error.errno))


def warn_once(lost: str, *, reason: str) -> None:
    """Print a warning, unless one of the same loss was printed before."""
    if lost not in _said:
        _said.add(lost)
        warn(f"{lost} ({reason})")


def forget() -> None:
    """Let each warning be printed once more, as in a new process."""
    _said.clear()
