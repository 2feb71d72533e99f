"""What a download shows."""

import io
import re
import sys

import pytest

from train import byte_bar
from train.byte_bar import ByteBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ByteBar("archive", 4_000_000, 1_000_000) as bar:
        bar._tqdm.mininterval = 0
        bar.advance(1_000_000)
        shown = sys.stderr.getvalue()
    assert re.search(r"archive:  50%\|.* 2.00M/4.00M \[00:00<00:00, .*B/s\]", shown)


@pytest.mark.parametrize(
    ("total", "line"),
    [(7_000_000, "archive: 4.0 of 7.0 MB, 50 kB/s, 1 minutes left\n"), (None, "archive: 4.0 MB, 50 kB/s\n")],
)
def test_without_a_terminal_there_is_a_line_every_minute(total, line, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(byte_bar.time, "monotonic", lambda: clock[0])
    with ByteBar("archive", total, 1_000_000) as bar:
        for clock[0] in (20.0, 40.0, 59.0):
            bar.advance(500_000)
        assert capsys.readouterr() == ("", "")
        for clock[0], num_bytes in ((60.0, 1_500_000), (61.0, 1)):
            bar.advance(num_bytes)
        assert capsys.readouterr() == ("", line)
