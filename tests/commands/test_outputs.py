"""New files and printed results, also on a full disk."""

import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest

from commands import outputs
from commands.outputs import is_output_error, print_and_write, write_new
from tests.support.application import ROOT, SMALL, command, everything_in
from train.errors import RunError

FULL = Path("/dev/full")


@pytest.fixture
def ten_bytes():
    """No file may have more than 10 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_file_is_whole_or_not_there(tmp_path, ten_bytes):
    write_new(tmp_path / "small", bytes(10))
    assert (tmp_path / "small").read_bytes() == bytes(10)
    with pytest.raises(RunError, match="large cannot be written: File too large"):
        write_new(tmp_path / "large", bytes(11))
    assert list(tmp_path.iterdir()) == [tmp_path / "small"]


def test_a_file_created_by_another_program_in_the_meantime_stays(tmp_path):
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(RunError, match="file cannot be written: File exists"):
        write_new(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"theirs"


def test_a_result_is_printed_before_files_and_each_is_tried(tmp_path, capsys):
    (tmp_path / "a").write_bytes(b"theirs")
    with pytest.raises(RunError, match="a cannot be written: File exists"):
        print_and_write(["result"], {tmp_path / "a": b"1", None: b"2", tmp_path / "b": b"3"})
    assert capsys.readouterr().out == "result\n"
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"theirs", b"3")


def test_files_are_written_even_if_nobody_reads_the_result(tmp_path, monkeypatch):
    def fail(*lines):
        raise BrokenPipeError

    monkeypatch.setattr(outputs, "say", fail)
    with pytest.raises(BrokenPipeError):
        print_and_write(["result"], {tmp_path / "a": b"1"})
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize(("error", "expected"), [
    (OSError(errno.ENOSPC, "No space left on device"), True),
    (OSError(errno.ENOSPC, "No space left on device", "results.csv"), False),
    (OSError(errno.EBADF, "Bad file descriptor"), False),
])  # fmt: skip
def test_an_error_that_names_a_file_is_no_error_of_the_output(error, expected):
    assert is_output_error(error) is expected


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("words", [["--help"], [*SMALL, "--n_epochs=1", "--limit_batches=1", "--save=run"]])
def test_output_on_a_full_disk_fails_in_one_line(words, unbuffered, tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    with FULL.open("w") as full:
        line = {"stdout": full, "stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": tmp_path}
        result = subprocess.run(command(*words), **line)
    assert result.returncode == 1
    assert result.stderr.endswith("error: cannot write the output: No space left on device\n")
    assert result.stderr.count("\n") == 1
    assert set(everything_in(tmp_path)) <= {"run", "run/config.json"}
