"""Downloads from servers on this machine that throttle, break off, are silent, redirect, or lie."""

import errno
import random
import re
import time

import pytest

from data.download.downloads import Downloads, Limits
from data.download.transfer import fetch
from data.errors import CorruptedData, NoNetwork
from data.known_files import File
from tests.support.dataset_files import contents_of
from tests.support.file_server import Fault, serving
from tests.support.synthetic_datasets import md5

NAME = "archive.tar.gz"
SIZE = 200_000
CONTENTS = random.Random(0).randbytes(SIZE)
HASTY = Limits(silent_seconds=0.2, slow_rate=400_000, slow_seconds=0.1, pauses=(0, 0, 0))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def file_at(url, *, size=SIZE):
    return File(NAME, md5(CONTENTS), f"{url}/{NAME}", size=size)


class Bars:
    """Progress bars, as lists of what they have counted."""

    def __init__(self):
        self.starts, self.totals, self.counts = [], [], []

    def __call__(self, title, total, start):
        assert title == NAME
        self.starts.append(start)
        self.totals.append(total)
        self.counts.append(0)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, num_bytes):
        self.counts[-1] += num_bytes


class Download:
    """A download of the file to a folder, and the lines that it has printed."""

    def __init__(self, folder, servers, *, limits=HASTY, size=SIZE):
        *mirrors, last = servers
        self.folder, self.lines, self.bars = folder, [], Bars()
        downloads = Downloads(tuple(server.url for server in mirrors), self.lines.append, self.bars, limits)
        fetch(folder / NAME, file_at(last.url, size=size), downloads)
        assert contents_of(folder).keys() == {NAME}
        assert (folder / NAME).read_bytes() == CONTENTS

    @property
    def anew(self):
        return [line for line in self.lines if line.startswith("Beginning anew")]


def refused(error, folder, server, *, size=SIZE, limits=HASTY):
    with pytest.raises(error) as caught:
        fetch(folder / NAME, file_at(server.url, size=size), Downloads(notify=lambda line: None, limits=limits))
    message = str(caught.value)
    for part in ("\n", f"cannot download {server.url}/{NAME}: it ", "--data_url", md5(CONTENTS), f"{folder / NAME}"):
        assert (part in message) == (part != "\n"), part
    return message


# Faults in spite of which the file arrives, how often the server is asked, and how many files' bytes it sends.
ARRIVES = {
    "none": (Fault(), 1, 1),
    "breaks off every 10 kB": (Fault(breaks_after=10_000), 20, 1),
    "resets the connection": (Fault(breaks_after=70_000, resets=True), 3, None),
    "breaks off in chunks": (Fault(breaks_after=150_000, chunks=True), 2, 1),
    "falls silent": (Fault(silent_after=150_000), 2, 1),
    "slow, and the only one": (Fault(rate=350_000), 1, 1),
    "says no length": (Fault(length=-1), 1, 1),
    "says no length, and sends too much": (Fault(length=-1, surplus=b"x" * 100_000), 1, None),
    "unavailable for a while": (Fault(codes=(503, 500, 429)), 4, 1),
    "redirects": (Fault(redirects=3), 4, 1),
    "says gzip": (Fault(headers={"Content-Encoding": "x-gzip"}), 1, 1),
}
# Faults for which it is given up: the type and the reason of the error, how often the server is asked, and kept bytes.
FAILS = {
    "not found": (Fault(codes=(404,)), NoNetwork, "answers 404 Not Found", 1, 0),
    "forbidden": (Fault(codes=(403,)), NoNetwork, "answers 403 Forbidden", 1, 0),
    "unavailable": (Fault(codes=(503,) * 9), NoNetwork, "answers 503 Service Unavailable", 4, 0),
    "mute": (Fault(is_mute=True), NoNetwork, "has sent nothing for 0.2 s", 4, 0),
    "silent at last": (Fault(silent_after=0), NoNetwork, "has sent nothing for 0.2 s", 4, 0),
    "breaks off at once": (Fault(breaks_after=0), NoNetwork, "has broken off", 4, 0),
    "redirects for ever": (Fault(redirects=99), NoNetwork, "answers 302", 11, 0),
    "no HTTP": (Fault(garbage=b"220 ftp\r\n\r\n"), NoNetwork, "has broken off: 220 ftp", 4, 0),
    "web page": (Fault(headers={"Content-Type": "text/html; charset=utf-8"}), CorruptedData, "sends a web page", 1, 0),
    "too short a length": (Fault(length=150_000), CorruptedData, "offers a file of 150,000 bytes", 1, 0),
    "too long a length": (Fault(length=250_000), CorruptedData, "offers a file of 250,000 bytes", 1, 0),
    "no ranges, and breaks off": (Fault(has_ranges=False, breaks_after=50_000), NoNetwork, "broken off", 5, 50_000),
    "no answer": (Fault(codes=(204,)), NoNetwork, "answers 204", 1, 0),
}


@pytest.mark.parametrize("fault", ARRIVES)
def test_a_file_arrives_from_a_server_that(fault, tmp_path):
    fault, requests, times = ARRIVES[fault]
    with serving({NAME: CONTENTS}, fault) as server:
        download = Download(tmp_path, [server])
        assert len(server.asked) == requests
        assert times is None or server.sent == times * SIZE
    assert not download.anew
    assert sum(download.bars.counts) == SIZE
    assert download.bars.starts[0] == 0
    assert set(download.bars.totals) == {SIZE}


@pytest.mark.parametrize("fault", FAILS)
def test_a_server_is_given_up_that(fault, tmp_path):
    fault, error, reason, requests, kept = FAILS[fault]
    with serving({NAME: CONTENTS}, fault) as server:
        message = refused(error, tmp_path / "new", server)
        assert reason in message
        assert len(server.asked) == requests
    if kept:
        assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {
            f"{NAME}.part": CONTENTS[:kept]
        }
        assert "0.1 of 0.2 MB are kept" in message
    else:
        assert contents_of(tmp_path) == {}


def test_nobody_listens(tmp_path):
    with serving({}) as server:
        pass
    begin = time.monotonic()
    message = refused(NoNetwork, tmp_path, server, limits=Limits(pauses=(60,)))
    assert f"cannot be reached: [Errno {errno.ECONNREFUSED}]" in message
    assert time.monotonic() < begin + 10


def test_the_failure_of_all_addresses_does_not_matter_if_the_file_has_come_from_elsewhere(tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS[:10])
    with serving({NAME: CONTENTS}, Fault(codes=(404,))) as server:
        put = lambda line: (tmp_path / NAME).write_bytes(CONTENTS)  # noqa: E731
        fetch(tmp_path / NAME, file_at(server.url), Downloads(notify=put, limits=HASTY))
    assert contents_of(tmp_path).keys() == {NAME}


def test_other_contents_of_the_right_size(tmp_path):
    with serving({NAME: CONTENTS[::-1]}) as server:
        assert "sends a file with another md5 digest" in refused(CorruptedData, tmp_path / "new", server)
        assert len(server.asked) == 1
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize("size", [SIZE, None])
def test_only_the_missing_bytes_of_an_earlier_part_are_sent(size, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS[:150_001])
    with serving({NAME: CONTENTS}) as server:
        download = Download(tmp_path, [server], size=size)
        assert server.asked == ["bytes=150001-"]
        assert server.sent == SIZE - 150_001
        assert download.lines[0].startswith(f"Downloading {server.url}/{NAME} to '{tmp_path / NAME}', from 0.2 ")
    assert (download.bars.starts, download.bars.totals) == ([150_001], [SIZE])


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_whole_part_needs_no_server(size, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS)
    with serving({NAME: CONTENTS}) as server:
        Download(tmp_path, [server], size=size)
        assert server.asked == []


# Parts that lead nowhere, and what the server is asked for.
POISONED = {
    "of other contents": (b"x" * 100_000, Fault(), ["bytes=100000-", ""]),
    "of other contents, whole": (b"x" * SIZE, Fault(), [""]),
    "longer than the file": (CONTENTS + b"x", Fault(), [""]),
    "for a server without ranges": (CONTENTS[:100_000], Fault(has_ranges=False), ["bytes=100000-"]),
    "for a server that sends another range": (CONTENTS[:100_000], Fault(range_shift=1), ["bytes=100000-", ""]),
}


@pytest.mark.parametrize("part", POISONED)
def test_it_begins_anew_once_with_a_part(part, tmp_path):
    part, fault, asked = POISONED[part]
    (tmp_path / f"{NAME}.part").write_bytes(part)
    with serving({NAME: CONTENTS}, fault) as server:
        download = Download(tmp_path, [server])
        assert server.asked == asked
    assert len(download.anew) == 1


def test_a_part_beyond_the_end_of_a_file_of_unknown_size(tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS + b"x")
    with serving({NAME: CONTENTS}) as server:
        download = Download(tmp_path, [server], size=None)
        assert server.asked == [f"bytes={SIZE + 1}-", ""]  # 416, then all
    assert len(download.anew) == 1


def test_a_wrong_digest_of_a_part_and_its_rest_is_not_tried_for_ever(tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS[:100_000])
    with serving({NAME: CONTENTS[::-1]}) as server:
        refused(CorruptedData, tmp_path, server)
        assert server.asked == ["bytes=100000-", ""]
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(silent_after=50_000), "has sent nothing for 0.2 s"),
        (Fault(rate=100_000), "sends only"),
        (Fault(codes=(404,)), "answers 404 Not Found"),
        (Fault(codes=(503,) * 9), "answers 503"),
        (Fault(breaks_after=0), "has broken off"),
        (Fault(is_mute=True), "has sent nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mirror_is_left_for_the_next_address_which_goes_on(fault, reason, tmp_path):
    with serving({NAME: CONTENTS}, fault) as mirror, serving({NAME: CONTENTS}) as server:
        download = Download(tmp_path, [mirror, server])
        arrived = SIZE - server.sent
        assert arrived <= mirror.sent
        assert server.asked == [f"bytes={arrived}-" if arrived else ""]
        left = f"{re.escape(mirror.url)}/{NAME} {reason}.*; trying {re.escape(server.url)}/{NAME}"
        assert any(re.fullmatch(left, line) for line in download.lines)


def test_mirrors_are_tried_first_and_others_not_asked(tmp_path):
    with serving({NAME: CONTENTS}) as mirror, serving({NAME: CONTENTS}) as server:
        Download(tmp_path, [mirror, server])
        assert (mirror.asked, server.asked) == ([""], [])


def test_a_slow_mirror_is_good_enough_if_the_others_fail(tmp_path):
    with serving({NAME: CONTENTS}, Fault(rate=300_000)) as mirror, serving({}) as server:
        download = Download(tmp_path, [mirror, server])
        assert mirror.sent < 1.2 * SIZE  # it goes on where it was left, up to what was under way
    assert not download.anew


def test_a_mirror_without_ranges_is_kept_from_what_has_arrived_while_another_may_go_on(tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENTS[:150_000])
    with serving({NAME: CONTENTS}, Fault(has_ranges=False)) as mirror, serving({NAME: CONTENTS}) as server:
        Download(tmp_path, [mirror, server])
        assert server.asked == ["bytes=150000-"]


def test_a_mirror_of_other_contents_spoils_nothing(tmp_path):
    """It breaks off in the middle, so that its bytes come in front of those of a good server."""
    with (
        serving({NAME: CONTENTS[::-1]}, Fault(silent_after=50_000)) as mirror,
        serving({NAME: CONTENTS}) as server,
    ):
        download = Download(tmp_path, [mirror, server])
        assert server.asked == ["bytes=50000-", ""]
    assert len(download.anew) == 1


def test_one_line_says_what_to_do_if_it_takes_long(tmp_path):
    hasty = Limits(silent_seconds=1, slow_seconds=0.05, long_seconds=0.1)
    with serving({NAME: CONTENTS}, Fault(rate=400_000)) as server:
        download = Download(tmp_path, [server], limits=hasty)
    hints = [line for line in download.lines if "kB/s" in line]
    assert len(hints) == 1
    for part in ("--data_url", md5(CONTENTS), NAME, str(tmp_path / NAME)):
        assert part in hints[0]


def test_what_has_arrived_before_an_interruption_stays(tmp_path):
    lines = []

    class Interrupting(Bars):
        def advance(self, num_bytes):
            super().advance(num_bytes)
            if self.counts[-1] > 100_000:
                raise KeyboardInterrupt

    with serving({NAME: CONTENTS}) as server:
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path / NAME, file_at(server.url), Downloads((), lines.append, Interrupting(), HASTY))
        arrived = (tmp_path / f"{NAME}.part").read_bytes()
        assert len(arrived) > 100_000
        assert arrived == CONTENTS[: len(arrived)]
        assert lines[-1].endswith(f"MB are kept in '{tmp_path / NAME}.part', and the same command goes on there")
        Download(tmp_path, [server])
        assert server.asked == ["", f"bytes={len(arrived)}-"]


def test_a_full_disk_is_no_failure_of_the_server(tmp_path, monkeypatch):
    def fail(part, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data.download.part.Part.add", fail)
    with serving({NAME: CONTENTS}) as server, pytest.raises(OSError, match="No space left"):
        fetch(tmp_path / NAME, file_at(server.url), Downloads(notify=lambda line: None, limits=HASTY))
    assert len(server.asked) == 1
