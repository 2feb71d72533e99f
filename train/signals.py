"""Signals that ask a program to stop: SIGTERM of schedulers, SIGINT of Ctrl-C, SIGHUP of a terminal that is closed."""

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from train.processes import SINGLE_PROCESS, ProcessGroup, is_launched
from train.terminal import alert

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
AGAIN_SECONDS = 0.01  # after which an object that is taken down is gone
SAME_SIGNAL_SECONDS = 2  # torchrun passes on what a scheduler may have sent to its processes too


def begin() -> None:
    """Undo that Ctrl-C ends this process by the system's default, as it does during the imports of a program.

    It does so again when Python is taken down, where an exception would be a page about code of others.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


class Stopped(KeyboardInterrupt):
    """A signal stopped the program.

    Args:
        number: Of the signal.
        where: How far the work was, for the user; may be empty.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(" ".join(filter(None, [f"stopped by {signal.Signals(number).name}", where])))
        self.number = number
        self.exit_code = 128 + number


class Stop:
    """Whether a signal has come to any process of a processes."""

    def __init__(self, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self._processes = processes
        self._number = 0
        self._time = 0.0

    def check(self, where: str = "", *, due: bool = False) -> bool:
        """Stop here if a signal has come. All processes call this at the same place of their work.

        Returns:
            Whether something is `due` in any of them.

        Raises:
            Stopped: In all processes, if so; `where` says how far the work is.
        """
        number, is_due = self._processes.all_reduce_max(self._number, due)
        if number:
            raise Stopped(number, where)
        return bool(is_due)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._number:
            if _is_passed_on(self._time):
                return
            alert(f"{name} again: stopped at once")
            os._exit(128 + number)
        self._number, self._time = number, time.monotonic()
        alert(f"{name}: stopping after the batch in hand; a second signal stops at once")


@contextmanager
def at_once() -> Iterator[None]:
    """Let a signal raise `Stopped` wherever the program is.

    Python drops what is raised while it takes an object down. A signal that comes then is sent once more. Other code
    may catch `Stopped` and raise an error of its own, as Python does while torch is imported. It is undone here.
    """
    times: list[float] = []
    others = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if times and _is_passed_on(times[-1]):
            return
        if _is_inside(frame, send_again):  # where it would be dropped once more
            _send_later(number)
            return
        times.append(time.monotonic())
        raise Stopped(number)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, Stopped):
            others(dropped)
            return
        times.clear()
        _send_later(dropped.exc_value.number)

    sys.unraisablehook = send_again
    try:
        with _handled(stop):
            yield
    except Exception as error:
        stopped = _first_cause(error)
        if isinstance(stopped, Stopped):
            raise Stopped(stopped.number) from error
        raise
    finally:
        sys.unraisablehook = others


@contextmanager
def after_the_step(processes: ProcessGroup = SINGLE_PROCESS) -> Iterator[Stop]:
    """Let the first signal wait for a `check`. A second one ends the process where it is."""
    stop = Stop(processes)
    with _handled(stop._note):
        yield stop


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals in this way; only the main thread can. A SIGHUP that is ignored stays so, as nohup wants it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in SIGNALS if not _is_of_nohup(number)]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _send_later(number: int) -> None:
    """Send a signal to this process in a moment, from a thread that is not waited for."""

    def send() -> None:
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), number)

    _thread.start_new_thread(send, ())


def _is_inside(frame: FrameType | None, function: Callable[..., object]) -> bool:
    """Whether a function is running at a place of the program."""
    while frame and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _is_of_nohup(number: int) -> bool:
    return number not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN


def _first_cause(error: BaseException) -> BaseException:
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    return error


def _is_passed_on(first: float) -> bool:
    """Whether a signal that comes now is the one that came at some time, passed on by torchrun."""
    return is_launched() and time.monotonic() < first + SAME_SIGNAL_SECONDS
