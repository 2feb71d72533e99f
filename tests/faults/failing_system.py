"""The application on a system that fails: a full disk, a broken one, a kill in the middle of a rename.

python -m tests.faults.failing_system full:100000 <words of demo.py>
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import demo
from train.run import open_folder

# The call that fails, and its error: a write after some number of bytes, or the n-th call of a function.
ERRORS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "fsync": errno.EIO, "open": errno.EACCES}
KILLS = ("kill-before-rename", "kill-after-rename")


class Countdown:
    """So many are left: bytes to write, or calls of a function. It goes on at zero, so a full disk stays full."""

    def __init__(self, left: int):
        self.left = left

    def take(self, wanted: int) -> int:
        """How many of those that are wanted there are."""
        taken = min(wanted, self.left)
        self.left -= taken
        return taken


def failure(what: str) -> OSError:
    return OSError(ERRORS[what], os.strerror(ERRORS[what]))


class LimitedFile(io.FileIO):
    """A file, below Python's buffer, on a disk that becomes full."""

    def __init__(self, path, countdown: Countdown, what: str, opener):
        super().__init__(path, "x+", opener=opener)
        self.countdown = countdown
        self.what = what

    def write(self, content) -> int:
        fits = self.countdown.take(len(content))
        if not fits and len(content):
            raise failure(self.what)
        return super().write(memoryview(content)[:fits])


class FailingSystem:
    """Stands in for `open` and `os` in `train.run.open_folder`, with one fault.

    Args:
        spec: The fault, a colon, and its moment: a number of bytes, or the number of a call, counted from 1.
    """

    def __init__(self, spec: str):
        self.what, _, number = spec.partition(":")
        if self.what not in (*ERRORS, *KILLS):
            raise ValueError(f"unknown fault {spec!r}")
        self.countdown = Countdown(int(number))

    def __getattr__(self, name: str):
        return getattr(os, name)

    def _is_due(self, *calls: str) -> bool:
        return self.what in calls and self.countdown.take(1) == 1 and self.countdown.left == 0

    def open_file(self, path, mode: str, opener):
        if self._is_due("open"):
            raise failure("open")
        if self.what in ("full", "quota"):
            return io.BufferedRandom(LimitedFile(path, self.countdown, self.what, opener))
        return open(path, mode, opener=opener)

    def fsync(self, descriptor: int) -> None:
        if self._is_due("fsync"):
            raise failure("fsync")
        os.fsync(descriptor)

    def replace(self, old, new, **folders) -> None:
        due = self._is_due(*KILLS)
        if not (due and self.what == "kill-before-rename"):
            os.replace(old, new, **folders)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def failing(spec: str) -> Iterator[FailingSystem]:
    """Let what this process writes meet a fault."""
    system = FailingSystem(spec)
    replaced = {"open": system.open_file, "os": system}
    with mock.patch.multiple(open_folder, create=True, **replaced):
        yield system


if __name__ == "__main__":
    with failing(sys.argv[1]):
        demo.main(sys.argv[2:])
