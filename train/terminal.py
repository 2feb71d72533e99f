"""The only way for text to reach a terminal: lines on stdout and stderr, and progress bars.

Names of files, folders and classes, and values in files, may come from anybody. Printed unchanged they could move the
cursor, add a line, or change the title of the window. Therefore each argument here is one line, and is escaped. The
streams are given by the environment, and may be closed, missing, or not Python's own.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from train.processes import current_group, is_launched

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # in the order of their descriptors 0, 1 and 2
NARROWEST, WIDEST = 60, 100  # columns

Item = TypeVar("Item")


def printable(value: object) -> str:
    r"""Return the text of a value on one line, with everything unprintable escaped as in Python's `repr`.

    This changes control characters such as newline (`\n`) and escape (`\x1b`), characters that reverse the direction of
    the text (`\u202e`), and bytes of a file name that are no text (`\udce9`). A backslash stays as it is: the result is
    meant for people, not for programs.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def say(*lines: str) -> None:
    """Print lines on stdout, in the main process of a run only.

    Raises:
        OSError: If stdout does not take them: the disk is full, or the reader of a pipe is gone.
    """
    if current_group().is_main:
        _print(lines, sys.stdout)


def say_error(*lines: str) -> None:
    """Print lines on stderr, in every process that calls this. A stderr that fails is ignored."""
    with suppress(OSError):
        _print(lines, sys.stderr)


def warn(message: str) -> None:
    """Print a warning on stderr, in the main process of a run only."""
    if current_group().is_main:
        say_error(f"warning: {message}")


def alert(message: str) -> None:
    """Print a line on stderr from a signal handler, past Python's buffers, which the signal may have interrupted."""
    if current_group().is_main and sys.stderr is not None:  # otherwise descriptor 2 may be any file
        with suppress(OSError):  # as after a terminal has hung up
            os.write(2, f"\n{printable(message)}\n".encode())


def is_terminal(stream: Any) -> bool:
    """Return whether a stream exists, is open, and is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def width() -> int:
    """Return how many columns wide a text should be: the width of the terminal, or COLUMNS, within limits."""
    return min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)


def open_streams() -> None:
    """Open /dev/null in place of each of stdin, stdout and stderr that was closed when this process began.

    Otherwise a file that is opened later could get descriptor 2, and libraries would write their messages into it.
    """
    for descriptor in range(len(STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free descriptor
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 it stays open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for libraries that print a name which the encoding lacks
            stream.reconfigure(errors="backslashreplace")


def leave(exit_code: int) -> NoReturn:
    """End this process, silently even if nobody reads its output any more.

    Where there are several processes, Python does not shut down in order: objects that are still alive may hold
    connections, and would abort the process if the threads of those ended first.
    """
    try:
        _flush(sys.stdout)
    except OSError as error:
        with suppress(AttributeError, ValueError, OSError):  # the stream has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more
        if not isinstance(error, BrokenPipeError) and not exit_code:  # or the error was reported already
            say_error(f"error: cannot write the output: {error.strerror}")
            exit_code = 1
    if is_launched():
        with suppress(OSError):
            _flush(sys.stderr)
        os._exit(exit_code)
    raise SystemExit(exit_code)


class Bar:
    """A progress bar on stderr, in the main process of a run and if stderr is a terminal; otherwise nothing is shown.

    Args:
        name: Text in front of the bar.
        total: Number of items; None if it is not known.
        unit: Text after numbers of items.
        initial: Items that were finished before, and do not count for the speed.
        is_scaled: Whether large numbers are shown as in 1.23M.
    """

    _shown: ClassVar[list["Bar"]] = []

    def __init__(
        self, name: str, total: int | None, *, unit: str = " images", initial: int = 0, is_scaled: bool = False
    ):
        self.name = name
        self._tqdm: Any = None
        if current_group().is_main and is_terminal(sys.stderr):
            from tqdm import tqdm  # takes a tenth of a second, which lines without a bar do not spend

            self._tqdm = tqdm(
                desc=printable(name),
                total=total,
                initial=initial,
                unit=unit,
                unit_scale=is_scaled,
                leave=False,
                dynamic_ncols=True,
            )
            self._shown.append(self)

    @property
    def is_shown(self) -> bool:
        """Whether it is on screen."""
        return self._tqdm is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._shown.remove(self)

    def advance(self, num_items: int) -> None:
        """Count finished items."""
        if self._tqdm is not None:
            self._tqdm.update(num_items)

    def note(self, text: str) -> None:
        """Show a text after the bar."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(printable(text))

    @classmethod
    def out_of_the_way(cls, stream: Any) -> AbstractContextManager[None]:
        """Clear the bars while lines are written to a stream, and draw them again afterwards."""
        return cls._shown[0]._tqdm.external_write_mode(stream) if cls._shown else nullcontext()


def progress(items: Iterable[Item], name: str, *, total: int | None = None) -> Iterator[Item]:
    """Yield items and show a `Bar`.

    Args:
        items: The items.
        name: Text in front of the bar.
        total: Number of items, needed if they have no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(name, total, unit="it") as bar:
        for item in items:
            yield item
            bar.advance(1)


def _print(lines: Iterable[str], stream: Any) -> None:
    if stream is None or getattr(stream, "closed", False):
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "".join(f"{printable(line)}\n" for line in lines)
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    with Bar.out_of_the_way(stream):
        stream.write(text)
        _flush(stream)


def _flush(stream: Any) -> None:
    if not getattr(stream, "closed", False):
        getattr(stream, "flush", lambda: None)()
