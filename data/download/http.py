"""Ask a server for a file from some position on, and understand its answer or its failure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from textwrap import shorten
from typing import Any

PIECE = 2**18  # bytes that are read at most at a time
PASSING = (408, 425, 429)  # with all codes from 500 on: errors that the server expects to pass
# Some servers refuse the name that Python gives itself.
HEADERS = {"User-Agent": "densenets", "Accept-Encoding": "identity"}


class SourceError(Exception):
    """An address does not give the file. The message says what it does instead, as in "answers 404 Not Found"."""


class Refused(SourceError):
    """Asking again would be of no use."""


class OtherFile(Refused):
    """The server sends another file."""


class Broken(SourceError):
    """A failure that may pass."""


class Unreachable(Broken):
    """There is no connection to the server."""


class Silent(Broken):
    """The server has sent nothing for too long."""


class NoRange(Broken):
    """The server does not send the file from this position on."""


@dataclass(frozen=True)
class Answer:
    """What a server sends.

    Attributes:
        start: Position of the first byte in the file.
        total: Bytes of the whole file, as the server says. None: it does not.
        pieces: The bytes, in pieces as they arrive. Raises `Broken` where they fail to; they may also end too early.
    """

    start: int
    total: int | None
    pieces: Iterator[bytes]


@contextmanager
def ask(url: str, *, start: int, silent_seconds: float) -> Iterator[Answer]:
    """Ask for a file from a position on. Redirections are followed, and proxies of the environment used.

    A server that knows no positions may answer with the whole file.

    Args:
        url: Address of the file.
        start: Position of the first byte that is wanted.
        silent_seconds: How long to wait for a connection, and for each piece.

    Raises:
        SourceError: If the server cannot be reached or sends something else. The subclasses say whether it is of use to
            ask again.
    """
    import urllib.request  # takes a tenth of a second, which few runs need

    request = urllib.request.Request(url, headers=HEADERS | ({"Range": f"bytes={start}-"} if start else {}))
    with _explained(silent_seconds, start):
        response = urllib.request.urlopen(request, timeout=silent_seconds)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OtherFile("sends a web page in place of the file")
        yield Answer(*_extent(response, start), _pieces(response, silent_seconds))


def _extent(response: Any, asked: int) -> tuple[int, int | None]:
    """Return the position of the first byte of an answer, and the bytes of the whole file if they are known."""
    if response.status == 200:
        length = re.fullmatch(r"[0-9]{1,18}", response.headers.get("Content-Length", ""))
        return 0, int(length[0]) if length else None
    sent = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    total = int(sent[2]) if sent and sent[2] != "*" else None
    if response.status == 206 and sent and int(sent[1]) == asked and (total is None or total > asked):
        return asked, total
    if asked:
        raise NoRange("does not send the rest that it is asked for")
    raise Refused(f"answers {response.status} without the file")


def _pieces(response: Any, silent_seconds: float) -> Iterator[bytes]:
    while True:
        with _explained(silent_seconds):
            piece = response.read1(PIECE)
        if not piece:
            return
        yield piece


@contextmanager
def _explained(silent_seconds: float, start: int = 0) -> Iterator[None]:
    """Raise a `SourceError` in place of the many errors of the network."""
    from urllib.error import HTTPError, URLError

    try:
        yield
    except HTTPError as error:
        error.close()
        kind = Broken if error.code in PASSING or error.code >= 500 else Refused
        kind = NoRange if error.code == 416 and start else kind
        raise kind(_line(f"answers {error.code} {error.reason}")) from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Unreachable(f"cannot be reached within {silent_seconds:g} s") from error
        raise Unreachable(_line(f"cannot be reached: {error.reason}")) from error
    except TimeoutError as error:
        raise Silent(f"has sent nothing for {silent_seconds:g} s") from error
    except ValueError as error:  # a redirection to something that is no address
        raise Refused(_line(f"cannot be used: {error}")) from error
    except (OSError, HTTPException) as error:
        raise Broken(_line(f"has broken off: {str(error) or type(error).__name__}")) from error


def _line(text: str) -> str:
    """Make one line, not too long, of a text that a server may have written."""
    return shorten(text, 200, placeholder=" ...")
