"""Signals that ask a program to stop.

SIGTERM, SIGUSR1 and SIGUSR2 come from schedulers, SIGINT from Ctrl-C, and SIGHUP from a terminal that is closed.
"""

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Self

from train.processes import SINGLE_PROCESS, ProcessGroup, is_launched
from train.terminal import alert

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
AGAIN_SECONDS = 0.01  # after which an object that is being destroyed is gone
SAME_SIGNAL_SECONDS = 2  # torchrun passes on what a scheduler may have sent to its processes too
ASKING_SECONDS = 0.1  # between two questions of the processes whether any of them has got a signal
MOST_CHECKS = 32  # from one question to the next: steps can be slower than those before, from which it is estimated


def begin() -> None:
    """Let Ctrl-C raise an exception again, after it has ended the process at once during the program's imports.

    It ends the process at once again while Python shuts down, where an exception would be a long traceback through
    other code.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


class Stopped(KeyboardInterrupt):
    """A signal stopped the program.

    Args:
        number: The number of the signal.
        where: How far the work is, for the user; may be empty.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(" ".join(filter(None, [f"stopped by {signal.Signals(number).name}", where])))
        self.number = number
        self.exit_code = 128 + number


class GracefulStop:
    """A context in which the first signal waits for a `check`, and a second one ends the process where it is.

    Several processes have to ask each other whether a signal has come, and each then waits for the slowest. They do so
    at every check where steps are slow, and about ten times a second where they are fast. They also stop, as after
    SIGTERM, when torchrun is gone.

    Args:
        processes: The processes of the run, which all stop at the same check where a signal has come to any of them.
    """

    def __init__(self, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self._processes = processes
        self._parent = os.getppid()
        self._handlers = ExitStack()
        self._number = 0
        self._time = 0.0
        self._checks = 0  # since the processes asked each other
        self._checks_to_ask = 1  # the same in all processes
        self._asked = time.monotonic()

    def __enter__(self) -> Self:
        self._handlers.enter_context(_handled(self._note))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.close()

    def check(self, where: str = "", *, due: int = 0, now: bool = False) -> int:
        """Stop here if a signal has come. All processes call this at the same place of their work.

        Args:
            where: How far the work is, for the user.
            due: What else is due in this process, as a number; 0 if nothing is.
            now: Let several processes ask each other in any case.

        Returns:
            The largest number of what is due in any process, in all of them; 0 as long as they do not ask each other.

        Raises:
            Stopped: In all processes, if a signal has come to any of them.
        """
        self._checks += 1
        if self._checks < self._checks_to_ask and not now:
            return 0
        if is_launched() and os.getppid() != self._parent:
            # torchrun does not hand every signal on, and dies of some; nobody would end its processes then.
            self._number = self._number or signal.SIGTERM
        seconds = (time.monotonic() - self._asked) / self._checks
        number, due, slowest = self._processes.all_reduce_max(self._number, int(due), round(seconds * 1e6))
        self._checks, self._asked = 0, time.monotonic()
        if self._processes.world_size > 1:
            self._checks_to_ask = checks_to_ask(slowest / 1e6)
        if number:
            raise Stopped(number, where)
        return due

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._number:
            if _is_passed_on(self._time):
                return
            alert(f"{name} again: stopped at once")
            os._exit(128 + number)
        self._number, self._time = number, time.monotonic()
        alert(f"{name}: stopping after the batch in hand; a second signal stops at once")


def stop_before(error: BaseException) -> Stopped | None:
    """Return the signal whose handling has ended in an error; None if there was none."""
    while not isinstance(error, Stopped):
        earlier = error.__cause__ or error.__context__
        if earlier is None:
            return None
        error = earlier
    return error


def checks_to_ask(seconds: float) -> int:
    """Return at which check several processes ask each other again.

    Args:
        seconds: From one check to the next, so far, in the slowest process.
    """
    return max(1, min(MOST_CHECKS, int(ASKING_SECONDS / max(seconds, 1e-6))))


@contextmanager
def immediate_stop() -> Iterator[None]:
    """Let a signal raise `Stopped` wherever the program is.

    Python drops an exception that is raised while it destroys an object. A signal that comes then is sent once more.
    Other code may catch that `Stopped` and raise an error of its own, as Python does while torch is imported; it is
    turned back into `Stopped`.
    """
    times: list[float] = []
    raised: list[Stopped] = []
    others = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if times and _is_passed_on(times[-1]):
            return
        if _is_inside(frame, send_again):  # where it would be dropped once more
            _send_later(number)
            return
        times.append(time.monotonic())
        raised.append(Stopped(number))
        raise raised[-1]

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
        first = _first_cause(error)
        if stopped := next((own for own in raised if own is first), None):
            raise Stopped(stopped.number) from error
        raise
    finally:
        sys.unraisablehook = others


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals in the main thread, which alone can. A SIGHUP that is ignored, as under nohup, stays ignored."""
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
    """Send a signal to this process after a moment, from a thread that nobody waits for."""

    def send() -> None:
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), number)

    _thread.start_new_thread(send, ())


def _is_inside(frame: FrameType | None, function: Callable[..., object]) -> bool:
    """Return whether a function is running in a frame of the program."""
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
    """Return whether a signal that comes now is only the one that came at `first`, passed on by torchrun."""
    return is_launched() and time.monotonic() < first + SAME_SIGNAL_SECONDS
