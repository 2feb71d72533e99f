"""Download one file from the first of several addresses that gives it.

What has arrived is kept in NAME.part, and the next attempt goes on there: at the same address or another one, in this
program or a later one. The md5 digest decides whether the file is the right one.
"""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from data.download.downloads import Downloads
from data.download.http import Answer, Broken, NoRange, OtherFile, Refused, Silent, SourceError, Unreachable, ask
from data.download.part import Part, open_part
from data.errors import CorruptedData, DataError, NoNetwork
from data.known_files import File, folder_for, give_name


def fetch(path: Path, file: File, downloads: Downloads) -> None:
    """Download a file, or wait for another program that is downloading it into the same folder.

    If a file has appeared at `path` in the meantime, it stays as it is, whatever its contents.

    Args:
        path: Where the file belongs. Its folder is created.
        file: Its digest, address and size.
        downloads: How to download it.

    Raises:
        NoNetwork: If it cannot be downloaded. What has arrived stays in `path`.part.
        CorruptedData: If every address sends something else.
        OSError: If the system refuses access, or the disk is full.
    """
    with folder_for(path), open_part(path, downloads.notify) as part:
        if part is None:
            return
        _Transfer(part, path, file, downloads).run()
    if part.size and not path.exists():
        give_name(part.path, path, file.md5)
    part.path.unlink(missing_ok=True)


class _Arrived(Exception):
    """The file has appeared in its place."""


class _SetAside(SourceError):
    """Another address may do better."""


@dataclass
class _Source:
    """An address, and what is known about it."""

    url: str
    has_answered: bool = False
    has_ranges: bool = True


class _Transfer:
    """The download of one file into an open part.

    Args:
        part: Takes the bytes, and may hold some already.
        path: Where the file belongs.
        file: The file.
        downloads: How to download it.
    """

    def __init__(self, part: Part, path: Path, file: File, downloads: Downloads):
        self._part = part
        self._path = path
        self._file = file
        self._downloads = downloads
        self._limits = downloads.limits
        mirrored = (f"{url.rstrip('/')}/{path.name}" for url in downloads.mirrors)
        self._urls = list(dict.fromkeys([*mirrored, file.url]))
        self._notify = downloads.notify
        # Where the bytes of the part come from. "": from an earlier program.
        self._senders = {""} if part.size else set()
        self._problems: dict[str, SourceError] = {}

    def run(self) -> None:
        """Fill the part, or clear it if the file has appeared in its place."""
        size = self._file.size
        if self._part.size and (size is None or self._part.size >= size):
            if self._is_right():
                return
            if size is not None:
                self._begin_anew(f"{str(self._part.path)!r} holds something else")
        place = repr(str(self._path))  # quoted, since a folder may have any name
        start = f", from {self._progress()} on" if self._part.size else ""
        self._notify(f"Downloading {self._urls[0]} to {place}{start}")
        try:
            self._try_addresses()
        except _Arrived:
            self._part.clear()
        except DataError:
            raise
        except BaseException:
            if self._part.size:
                self._notify(self._kept())
            raise

    def _try_addresses(self) -> None:
        """Try all addresses in their order, and afterwards once more those that may have been left too early."""
        waiting, set_aside = deque(map(_Source, self._urls)), deque[_Source]()
        can_mix = True  # whether bytes of one address may follow those of another
        while waiting or set_aside:
            source = (waiting or set_aside).popleft()
            if not can_mix:
                self._clear()
            try:
                self._receive(source, has_others=bool(waiting))
            except SourceError as error:
                self._problems[source.url] = error
                if waiting:
                    self._notify(f"{source.url} {error}; trying {waiting[0].url}")
                    if not isinstance(error, Refused | Unreachable):
                        set_aside.append(source)
                continue
            if self._is_right():
                return
            is_mixed = self._senders != {source.url}
            self._begin_anew(f"what has arrived has another md5 digest than {self._file.md5}")
            if is_mixed and can_mix:
                can_mix = False
                waiting.appendleft(source)
            else:
                self._problems[source.url] = OtherFile("sends a file with another md5 digest")
        if self._path.exists():
            raise _Arrived
        raise self._failure() from [*self._problems.values()][-1]

    def _receive(self, source: _Source, *, has_others: bool) -> None:
        """Receive the rest of the file from one address, in as many attempts as bring something."""
        limits, pace = self._limits, _Pace(self._limits.slow_seconds)
        farthest, failures = self._part.size, 0
        while True:
            try:
                start = self._part.size if source.has_ranges else 0
                with ask(source.url, start=start, silent_seconds=limits.silent_seconds) as answer:
                    source.has_answered = True
                    return self._write(answer, source.url, pace, has_others=has_others)
            except NoRange:
                source.has_ranges = False
                continue
            except Broken as error:
                problem = error
            if self._path.exists():
                raise _Arrived
            failures = 0 if self._part.size > farthest else failures + 1
            farthest = max(farthest, self._part.size)
            is_dead = isinstance(problem, Unreachable) and not source.has_answered
            is_worse = has_others and (failures > 1 or isinstance(problem, Silent))
            if is_dead or is_worse or failures > len(limits.pauses):
                raise problem
            self._notify(f"{source.url} {problem}; going on at {self._progress()}")
            time.sleep(limits.pauses[max(failures - 1, 0)] if limits.pauses else 0)

    def _write(self, answer: Answer, url: str, pace: "_Pace", *, has_others: bool) -> None:
        """Write what one connection brings."""
        size = self._file.size
        if size and answer.total is not None and answer.total != size:
            raise OtherFile(f"offers a file of {answer.total:,} bytes in place of {size:,}")
        if self._part.size and not answer.start:
            if has_others:
                raise _SetAside("sends the file from its beginning only")
            self._begin_anew(f"{url} sends the file from its beginning only")
        self._senders.add(url)
        total = size or answer.total
        with self._downloads.bar(self._path.name, total, self._part.size) as bar:
            for piece in answer.pieces:
                wanted = piece if total is None else piece[: total - self._part.size]
                self._part.add(wanted)
                bar.advance(len(wanted))
                if self._part.size == total:
                    return
                self._watch(pace, len(wanted), total, has_others=has_others)
        if total is not None:
            raise Broken("has broken off")

    def _watch(self, pace: "_Pace", num_bytes: int, total: int | None, *, has_others: bool) -> None:
        """Leave an address that is slow if there is another one; say what would be faster if it takes long."""
        rate = pace.count(num_bytes)
        if rate is None:
            return
        if has_others and rate < self._limits.slow_rate:
            raise _SetAside(f"sends only {rate / 1e3:,.1f} kB/s")
        seconds = (total - self._part.size) / rate if total else 0
        if pace.windows == 1 and seconds > self._limits.long_seconds:
            self._notify(
                f"At {rate / 1e3:,.0f} kB/s, {seconds / 60:,.0f} minutes are left; if that is too long, stop this, "
                f"{self._elsewhere()}, and start again"
            )

    def _begin_anew(self, reason: str) -> None:
        self._notify(f"Beginning anew: {reason}")
        self._clear()

    def _clear(self) -> None:
        self._part.clear()
        self._senders.clear()

    def _is_right(self) -> bool:
        return self._part.digest() == self._file.md5

    def _progress(self) -> str:
        total = f" of {self._file.size / 1e6:,.1f}" if self._file.size else ""
        return f"{self._part.size / 1e6:,.1f}{total} MB"

    def _kept(self) -> str:
        return f"{self._progress()} are kept in {str(self._part.path)!r}, and the same command goes on there"

    def _elsewhere(self) -> str:
        return (
            f"name the folder of a mirror with --data_url, or put the file {self._path.name} "
            f"(md5 digest {self._file.md5}) at {str(self._path)!r}"
        )

    def _failure(self) -> DataError:
        are_other = all(isinstance(problem, OtherFile) for problem in self._problems.values())
        problems = "; ".join(f"{url}: it {problem}" for url, problem in self._problems.items())
        kept = f"; {self._kept()}" if self._part.size else ""
        kind = CorruptedData if are_other else NoNetwork
        return kind(f"cannot download {problems}; {self._elsewhere()}{kept}")


class _Pace:
    """How fast bytes arrive, over one window of time after the other."""

    def __init__(self, seconds: float):
        self.windows = 0
        self._seconds = seconds
        self._begin = time.monotonic()
        self._count = 0

    def count(self, num_bytes: int) -> float | None:
        """Count bytes, and return the bytes in a second over a window that has just ended."""
        self._count += num_bytes
        elapsed = time.monotonic() - self._begin
        if elapsed < self._seconds:
            return None
        rate = self._count / elapsed
        self.windows, self._begin, self._count = self.windows + 1, time.monotonic(), 0
        return rate
