"""The one way for text to reach a terminal: lines on stdout and stderr, and progress bars.

Names of files, folders and classes, and values in files, may come from anybody. Printed as they are they could move the
cursor, add a line, or change the title of the window. So a line is one argument here, and is escaped as a whole. The
streams are those that the environment gives, which may be closed, missing, or not Python's own.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from train.processes import current_group, is_launched

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # in the order of their descriptors 0, 1 and 2
NARROWEST, WIDEST = 60, 100  # columns

Item = TypeVar("Item")


def printable(value: object) -> str:
    r"""The text of a value on one line, with all that is not printable escaped as in Python's `repr`.

    This changes control characters such as newlines (`\n`) and escape (`\x1b`), characters that turn the direction of
    the text (`\u202e`), and bytes of a file name that are no text (`\udce9`). A backslash stays one: the result is for
    people to read, and not for programs.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def say(*lines: str) -> None:
    """Print lines on stdout, in the first process of a run only.

    Raises:
        OSError: If stdout does not take them: the disk is full, or the reader of a pipe is gone.
    """
    if current_group().is_main:
        _print(lines, sys.stdout)


def say_error(*lines: str) -> None:
    """Print lines on stderr, in this process, whichever it is. A stderr that fails is passed over in silence."""
    with suppress(OSError):
        _print(lines, sys.stderr)


def warn(message: str) -> None:
    """Print a line of warning on stderr, in the first process of a run only."""
    if current_group().is_main:
        say_error(f"warning: {message}")


def alert(message: str) -> None:
    """Print a line on stderr from a signal handler, without Python's buffers, which the signal may have interrupted."""
    if current_group().is_main and sys.stderr is not None:  # else number 2 may be that of any file
        with suppress(OSError):  # as after a terminal has hung up
            os.write(2, f"\n{printable(message)}\n".encode())


def is_terminal(stream: Any) -> bool:
    """Whether a stream is there, is open, and says that it is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def width() -> int:
    """How many columns wide a text should be: as the terminal is or COLUMNS says, within limits."""
    return min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)


def open_streams() -> None:
    """Give this process /dev/null in the place of each of stdin, stdout and stderr that was closed when it began.

    Otherwise the next file that is opened gets the number 2, say, and what libraries write to stderr lands in it.
    """
    for descriptor in range(len(STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 it stays open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for libraries that print a name which the encoding lacks
            stream.reconfigure(errors="backslashreplace")


def leave(exit_code: int) -> NoReturn:
    """End this process, without complaint if nobody reads any more what it has printed.

    Where there are several, Python is not taken down in order: what is still alive may hold connections, and aborts
    the process when these go after their threads.
    """
    try:
        _flush(sys.stdout)
    except OSError as error:
        with suppress(AttributeError, ValueError, OSError):  # it has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more
        if not isinstance(error, BrokenPipeError) and not exit_code:  # or it has been said
            say_error(f"error: cannot write the output: {error.strerror}")
            exit_code = 1
    if is_launched():
        with suppress(OSError):
            _flush(sys.stderr)
        os._exit(exit_code)
    raise SystemExit(exit_code)


class Bar:
    """A progress bar on stderr, in the first process of a run and if that is a terminal; otherwise nothing is shown.

    Args:
        name: Stands before the bar.
        total: Number of items; None if it is not known.
        unit: Stands after numbers of items.
    """

    _shown: ClassVar[list[Self]] = []

    def __init__(self, name: str, total: int | None, *, unit: str = " images"):
        self.name = name
        self._tqdm = None
        if current_group().is_main and is_terminal(sys.stderr):
            from tqdm import tqdm  # takes a tenth of a second, which lines without a bar do not spend

            self._tqdm = tqdm(desc=printable(name), total=total, unit=unit, leave=False, dynamic_ncols=True)
            self._shown.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._shown.remove(self)

    def advance(self, num_items: int) -> None:
        """Count items that are done."""
        if self._tqdm is not None:
            self._tqdm.update(num_items)

    def note(self, text: str) -> None:
        """Show a text after the bar."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(printable(text))

    @classmethod
    def out_of_the_way(cls, stream: Any) -> AbstractContextManager[None]:
        """Clear the bars while lines are written to a stream, and draw them again."""
        return cls._shown[0]._tqdm.external_write_mode(stream) if cls._shown else nullcontext()


def progress(items: Iterable[Item], name: str, *, total: int | None = None) -> Iterator[Item]:
    """Go through items and show a `Bar`. `total` is needed where the items have no length."""
    with Bar(name, len(items) if total is None else total, unit="it") as bar:
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
