"""What the user and the command line decide about downloads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self


class ByteBar(Protocol):
    """A progress bar of a download."""

    def advance(self, num_bytes: int, /) -> None:
        """Count bytes that have arrived."""
        ...


# Creates a progress bar from its title, the number of bytes (None: not known), and how many of them are there already.
MakeByteBar = Callable[[str, int | None, int], AbstractContextManager[ByteBar]]


class NoBar:
    """A progress bar that shows nothing."""

    def __init__(self, title: str, total: int | None, start: int):
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Limits:
    """When an address is given up. While there is no other one to try, only failures count, not slowness.

    Attributes:
        silent_seconds: Without a byte for this long, a connection is given up.
        slow_rate: Bytes in a second below which an address is slow.
        slow_seconds: Time over which that rate is measured.
        long_seconds: If more time than this is left, a line says what would be faster.
        pauses: Seconds before each further attempt, where attempts in a row have brought nothing. When all of them are
            over, the address is given up.
    """

    silent_seconds: float = 30
    slow_rate: float = 20_000
    slow_seconds: float = 60
    long_seconds: float = 600
    pauses: tuple[float, ...] = (1, 2, 5, 10, 20, 30, 60)


@dataclass(frozen=True)
class Downloads:
    """How missing files are downloaded.

    Attributes:
        mirrors: Addresses of folders that may hold the files. They are tried before the files' own addresses.
        notify: Takes lines for the user.
        bar: Creates the progress bar of each connection.
        limits: When an address is given up.
    """

    mirrors: tuple[str, ...] = ()
    notify: Callable[[str], object] = print
    bar: MakeByteBar = NoBar
    limits: Limits = Limits()
