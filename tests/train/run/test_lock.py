"""One process at a time in a folder."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.application import ROOT
from train.errors import UserError
from train.run.acquire import LOCK, locked

HOLDER = """
import sys
from pathlib import Path
from train.run.acquire import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_in_a_line_that_names_the_first(holder, tmp_path):
    message = re.escape(f"--save {tmp_path} is in use by process {holder.pid} on ") + r"[^\n]+; wait for it, or[^\n]*$"
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(UserError, match=message), locked(tmp_path):
            pytest.fail("two processes hold the lock")
    assert (tmp_path / LOCK).exists()


def test_the_folder_is_free_and_empty_when_the_first_is_done(holder, tmp_path):
    holder.communicate()
    assert holder.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert (tmp_path / LOCK).read_text() == f"process {holder.pid} on {os.uname().nodename}\n"
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_to_the_same_process_too(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path):
        pytest.fail("the lock is held twice")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError), locked(tmp_path):
            pytest.fail("the folder was written")
    finally:
        tmp_path.chmod(0o700)


def test_a_missing_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none"):
        pytest.fail("there is no such folder")


@pytest.mark.parametrize("is_replaced", [False, True], ids=["gone", "another's"])
def test_a_file_that_its_owner_removed_meanwhile_is_not_taken_for_the_lock(is_replaced, tmp_path, monkeypatch):
    """Between opening and locking, the owner removes the file, and perhaps the next one makes another."""
    path = tmp_path / LOCK
    real, opened = os.open, []

    def open_and_lose(path_or_name, *arguments, **folder):
        descriptor = real(path_or_name, *arguments, **folder)
        if path_or_name != LOCK:
            return descriptor
        opened.append(descriptor)
        if len(opened) == 1:
            path.unlink()
            if is_replaced:
                path.write_text("of the next one")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with locked(tmp_path):
        assert len(opened) == 2
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(UserError, match="is in use by"), locked(tmp_path):
            pytest.fail("the lock is held twice")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("unharmed")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path):
        pytest.fail("the link was followed")
    assert (tmp_path / "precious").read_text() == "unharmed"
