"""Files that are whole or not there, and reading them back."""

import errno
import os
import pickle
import stat

import pytest
import torch

from tests.support.malicious_pickle import Hostile
from train.errors import RunError, UserError
from train.run.files import load_tensors, serialize
from train.run.open_folder import atomic_write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pt"


@pytest.fixture
def saved(path):
    path.write_bytes(serialize({"weights": torch.arange(1000.0), "rows": [{"epoch": 1, "error": 0.5}]}))
    return path


def test_contents_come_back(saved):
    content = load_tensors(saved)
    assert torch.equal(content["weights"], torch.arange(1000.0))
    assert content["rows"] == [{"epoch": 1, "error": 0.5}]


def test_a_failed_write_leaves_the_old_file_and_no_other(saved):
    before = saved.read_bytes()

    def fill_the_disk(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=f"cannot write {saved}: No space left on device"):
        atomic_write(saved, fill_the_disk)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_old_contents_stand_until_the_new_ones_are_on_disk(saved):
    before = saved.read_bytes()
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(saved.read_bytes())

    atomic_write(saved, write)
    assert seen == [before]
    assert saved.read_bytes() == b"new"


def test_contents_are_synced_before_the_rename_and_the_folder_after_it(path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        real_fsync(descriptor)

    def replace(old, new, **folders):
        calls.append("rename")
        real_replace(old, new, **folders)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(path, lambda file: file.write(b"x"))
    assert calls == ["sync file", "rename", "sync folder"]


def test_permissions_are_those_of_an_ordinary_file(path):
    before = os.umask(0o022)
    try:
        atomic_write(path, lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_one_flipped_bit_is_found(saved):
    contents = bytearray(saved.read_bytes())
    contents[contents.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 4
    saved.write_bytes(contents)
    torch.load(saved, weights_only=True)  # does not see it
    with pytest.raises(UserError, match=f"{saved} is damaged"):
        load_tensors(saved)


@pytest.mark.parametrize("contents", [b"", b"epoch,loss\n", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused_in_one_line(path, contents):
    path.write_bytes(contents)
    with pytest.raises(UserError, match=f"{path} is damaged(: it is empty$|, or is no file of tensors: )") as refusal:
        load_tensors(path)
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        load_tensors(saved)


def test_a_hostile_pickle_does_not_run(path, tmp_path):
    torch.save({"weights": Hostile(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=rf"^{path} is whole, but holds \w+\.mkdir, which could run code"):
        load_tensors(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
