"""Part files: who may write them, and what becomes of them."""

import errno
import os
import re
from contextlib import nullcontext

import pytest

from data.download.part import open_part

SILENT = pytest.fail  # no line is expected


def test_a_part_goes_on_where_it_was_left(tmp_path):
    for text in (b"first", b", second"):
        with open_part(tmp_path / "file", SILENT) as part:
            part.add(text)
    assert (tmp_path / "file.part").read_bytes() == b"first, second"
    with open_part(tmp_path / "file", SILENT) as part:
        assert part.size == 13
        part.clear()
        part.add(b"third")
        assert part.digest() == "dd5c8bf51558ffcbe5007071908e9524"  # of md5sum
        part.add(b".")
    assert (tmp_path / "file.part").read_bytes() == b"third."


@pytest.mark.parametrize("fails", [True, False])
def test_an_empty_part_is_removed(fails, tmp_path):
    class Failure(Exception):
        pass

    with pytest.raises(Failure) if fails else nullcontext(), open_part(tmp_path / "file", SILENT):
        assert (tmp_path / "file.part").exists()
        if fails:
            raise Failure
    assert [*tmp_path.iterdir()] == []


def test_there_is_no_part_of_a_file_that_is_there(tmp_path):
    (tmp_path / "file").write_bytes(b"whole")
    with open_part(tmp_path / "file", SILENT) as part:
        assert part is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "file.part").symlink_to("theirs")
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))), open_part(tmp_path / "file", SILENT):
        pass
    assert (tmp_path / "theirs").read_bytes() == b"precious"


@pytest.fixture
def no_locks(monkeypatch):
    def unavailable(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", unavailable)


def test_without_locks_each_part_has_a_name_of_its_own(tmp_path, no_locks):
    with open_part(tmp_path / "file", SILENT) as one, open_part(tmp_path / "file", SILENT) as other:
        paths = {one.path, other.path}
        assert len(paths) == 2
        assert all(re.fullmatch(r"file\.[0-9a-f]{16}\.part", path.name) for path in paths)
    assert {*tmp_path.iterdir()} == paths


def test_without_locks_a_part_is_removed_after_an_error(tmp_path, no_locks):
    def fail():
        with open_part(tmp_path / "file", SILENT) as part:
            part.add(b"some")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [*tmp_path.iterdir()] == []
