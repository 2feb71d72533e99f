"""A web server on this machine that hands out files, and has the faults of real ones."""

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 8192


@dataclass
class Fault:
    """How a server deviates from a good one.

    Attributes:
        has_ranges: Whether it sends a file from any position on.
        breaks_after: Bytes after which it closes each connection.
        resets: Whether it does so with an error (RST).
        silent_after: Bytes of each connection after which it sends nothing more.
        is_mute: Whether it takes requests and never answers.
        rate: Bytes in a second. None: as fast as possible.
        codes: Answers of the first requests, for example 503.
        length: What the length of a body is said to be. None: the truth; -1: nothing is said, and it may end anywhere.
        surplus: Bytes that follow the file where no length is said.
        range_shift: What is added to the position that it says it sends.
        redirects: How many other addresses it sends a client to before the file.
        headers: Further headers.
        garbage: What it sends in place of an answer.
        chunks: Whether it sends the body in chunks without a length.
    """

    has_ranges: bool = True
    breaks_after: int | None = None
    resets: bool = False
    silent_after: int | None = None
    is_mute: bool = False
    rate: float | None = None
    codes: tuple[int, ...] = ()
    length: int | None = None
    surplus: bytes = b""
    range_shift: int = 0
    redirects: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    garbage: bytes = b""
    chunks: bool = False


@dataclass
class FileServer:
    """A running server.

    Attributes:
        url: Address of its folder.
        contents: Contents by name.
        fault: Its fault.
        asked: Range headers of all requests, "" for the whole file.
        sent: Bytes of files that it has sent in all, or is sending.
    """

    url: str
    contents: dict[str, bytes]
    fault: Fault
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(contents: dict[str, bytes], fault: Fault | None = None) -> Iterator[FileServer]:
    """Run a server until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(OSError):  # the client has gone
                _answer(self, state)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = FileServer(f"http://127.0.0.1:{server.server_port}/folder", contents, fault or Fault())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, state: FileServer) -> None:
    fault, number = state.fault, len(state.asked)
    state.asked.append(handler.headers.get("Range", ""))
    if fault.is_mute:
        state.ended.wait()
        return
    if fault.garbage:
        handler.wfile.write(fault.garbage)
        return
    if number < len(fault.codes):
        handler.send_error(fault.codes[number])
        return
    if number < fault.redirects:
        handler.send_response(302)
        handler.send_header("Location", f"{state.url}/elsewhere{number}/{handler.path.rpartition('/')[2]}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    contents = state.contents.get(handler.path.rpartition("/")[2])
    if contents is None:
        handler.send_error(404)
        return
    _send(handler, state, contents)


def _send(handler: BaseHTTPRequestHandler, state: FileServer, contents: bytes) -> None:
    fault, asked = state.fault, re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    start = int(asked[1]) if asked and fault.has_ranges else 0
    if start and start >= len(contents):
        handler.send_error(416)
        return
    body = contents[start:] + fault.surplus
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start + fault.range_shift}-{len(contents) - 1}/{len(contents)}")
    if fault.chunks:
        handler.send_header("Transfer-Encoding", "chunked")
    elif fault.length != -1:
        handler.send_header("Content-Length", str(len(body) if fault.length is None else fault.length))
    handler.send_header("Connection", "close")
    for name, value in fault.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    _send_body(handler, state, body)


def _send_body(handler: BaseHTTPRequestHandler, state: FileServer, body: bytes) -> None:
    fault, sent = state.fault, 0
    limit = min(n for n in (fault.breaks_after, fault.silent_after, len(body)) if n is not None)
    while sent < limit:
        piece = body[sent : min(sent + PIECE, limit)]
        sent += len(piece)
        state.sent += len(piece)  # first, for a client that looks at it as soon as it has the piece
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunks else piece)
        if fault.rate:
            time.sleep(len(piece) / fault.rate)
    if fault.silent_after is not None:
        state.ended.wait()
    elif fault.chunks and limit == len(body):
        handler.wfile.write(b"0\r\n\r\n")
    if fault.resets and limit < len(body):
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
