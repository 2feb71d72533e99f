"""Output of other libraries is dropped while their code runs, and everything is as it was afterwards."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from commands.export.quiet import without_output
from tests.support.application import ROOT


def chatter(word):
    print(word)
    print(word, file=sys.stderr)
    os.write(1, word.encode())
    os.write(2, word.encode())
    logging.getLogger("other").error(word)
    warnings.warn(word, stacklevel=1)


def test_output_is_dropped_inside_and_not_before_or_after(capfd, caplog):
    print("before")
    with without_output():
        chatter("chatter")
    with pytest.warns(UserWarning, match="after"):
        chatter("after")
    sys.stdout.flush()
    out, error = capfd.readouterr()
    assert "chatter" not in out + error + caplog.text
    assert out.splitlines()[0] == "before"
    assert "after" in caplog.text
    assert (out.count("after"), error.count("after")) == (2, 2)


def test_an_exception_ends_it_too(capfd):
    with pytest.raises(KeyError), without_output():
        raise KeyError
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def test_no_descriptor_is_left_open():
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with without_output():
            pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_the_level_of_logging_is_kept():
    logging.disable(logging.INFO)
    try:
        with without_output():
            assert not logging.getLogger("other").isEnabledFor(logging.CRITICAL)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


CLOSED = """
from commands.export.quiet import without_output
file = open("new", "wb", buffering=0)  # gets the descriptor of the stream that was closed
with without_output():
    print("chatter")
    file.write(b"mine")
"""


@pytest.mark.parametrize("closing", [">&-", "2>&-"])
def test_a_file_with_the_descriptor_of_a_closed_stream_is_left_alone(closing, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    line = f'"$0" -c "$1" {closing}'
    result = subprocess.run(
        ["sh", "-c", line, sys.executable, CLOSED], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "new").read_bytes() == b"mine"
