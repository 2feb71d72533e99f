"""Which refusals of the operating system end a run, and which only cost it a safeguard.

Locks, syncs and file numbers protect a run from other runs, from power cuts and from folders that are moved or
replaced. Not every file system offers them all. A run that has to do without one warns once and goes on. A call that
the work itself needs must succeed, and a disk that is full, broken or read-only (ENOSPC, EDQUOT, EIO, EROFS) is always
an error.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from train.terminal import warn

# "There is no such thing here", whatever was asked for. EINVAL answers an fsync of something that cannot be synced,
# EPERM a call that a container does not let its programs make.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM})

_warned: set[str] = set()


@contextmanager
def if_supported(loss: str | None, *further: int) -> Iterator[None]:
    """Run the block, and go on after it if the operating system does not support what it asks for.

    Args:
        loss: The protection that is missing then; each process warns of it once. None: nothing is lost, so that there
            is no warning.
        further: Error numbers that mean "not supported" for this call, though not in general.

    Raises:
        OSError: Any other error of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED and error.errno not in further:
            raise
        if loss is not None:
            warn_once(loss, reason=error.strerror or os.strerror(error.errno))


def warn_once(loss: str, *, reason: str) -> None:
    """Print a warning, unless this process has already warned of the same loss."""
    if loss not in _warned:
        _warned.add(loss)
        warn(f"{loss} ({reason})")


def forget() -> None:
    """Forget all warnings, as in a new process."""
    _warned.clear()
