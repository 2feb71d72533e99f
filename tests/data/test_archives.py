"""Unpacking an archive, and the errors and files that are left if it fails."""

import io
import shutil
import tarfile
from dataclasses import replace

import pytest
import torch

from data.datasets import load
from data.errors import CorruptedData
from tests.support.dataset_files import ADDRESS, ARCHIVE, CIFAR, contents_of, flip_a_byte, in_memory, refused
from tests.support.synthetic_datasets import archived, cifar10, make_cifar10, md5

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize("download", [True, False])
def test_a_corrupted_archive_is_not_unpacked(download, tmp_path, monkeypatch, server):
    synthetic = make_cifar10(tmp_path, monkeypatch=monkeypatch, as_archive=True)
    server.contents = synthetic.downloads
    flip_a_byte(tmp_path / ARCHIVE)
    before = contents_of(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path, download=download)
    assert str(tmp_path / ARCHIVE) in message
    assert ADDRESS in message
    assert contents_of(tmp_path) == before
    assert server.asked == []


def test_a_corrupted_archive_does_not_matter_if_the_files_exist(tmp_path, monkeypatch):
    synthetic = make_cifar10(tmp_path, monkeypatch=monkeypatch)
    (tmp_path / ARCHIVE).write_bytes(b"not an archive")
    dataset = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(in_memory(dataset.train).images, synthetic.train.images)


def test_an_archive_without_a_member_is_named(tmp_path, monkeypatch):
    synthetic = cifar10(50, 20, 0)
    lacking = str(CIFAR / "data_batch_3")
    archive = archived({path: contents for path, contents in synthetic.files.items() if path != lacking})
    synthetic = replace(synthetic, archive=archive)
    synthetic.trust(monkeypatch)
    synthetic.write_archive(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    for part in (str(tmp_path / ARCHIVE), lacking, ADDRESS):
        assert part in message
    assert (tmp_path / ARCHIVE).read_bytes() == archive


def test_an_archive_with_a_wrong_member_puts_nothing_in_its_place(tmp_path, monkeypatch):
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    wrong = str(CIFAR / "data_batch_1")
    synthetic = replace(synthetic, archive=archived({**synthetic.files, wrong: b"wrong"}))
    monkeypatch.setattr(synthetic.reader, "tgz_md5", md5(synthetic.archive))
    synthetic.write_archive(tmp_path)
    before = contents_of(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    for part in (str(tmp_path / wrong), str(tmp_path / ARCHIVE), ADDRESS):
        assert part in message
    assert contents_of(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("contents", [b"no archive at all", archived({"a": b"a" * 9000})[:60]], ids=["text", "cut off"])
def test_an_archive_that_cannot_be_unpacked_is_named(contents, tmp_path, monkeypatch):
    synthetic = replace(cifar10(50, 20, 0), archive=contents)
    synthetic.trust(monkeypatch)
    synthetic.write_archive(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    assert str(tmp_path / ARCHIVE) in message
    assert ADDRESS in message


def test_unpacking_completes_a_folder_and_replaces_nothing(tmp_path, monkeypatch):
    synthetic = cifar10(50, 20, 0)
    notes = str(CIFAR / "readme.html")
    synthetic = synthetic.with_files(synthetic.files, also_archived={notes: b"from the archive"})
    synthetic.trust(monkeypatch)
    synthetic.write_files(tmp_path)
    synthetic.write_archive(tmp_path)
    (tmp_path / notes).write_bytes(b"my notes")
    (tmp_path / CIFAR / "data_batch_2").unlink()
    before = contents_of(tmp_path)
    dataset = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(in_memory(dataset.train).images, synthetic.train.images)
    after = contents_of(tmp_path)
    new = after.pop(str(CIFAR / "data_batch_2"))
    assert new[1] == synthetic.files[str(CIFAR / "data_batch_2")]
    without_folder_times = {path: entry for path, entry in before.items() if entry[1] is not None}
    assert without_folder_times.items() <= after.items()
    assert after.keys() == before.keys() - {str(CIFAR / "data_batch_2")}


def hostile_archive(synthetic, outside):
    """Return an archive with the files of a data set and members that would be written elsewhere."""
    evil = {name: b"evil" for name in ("../evil", str(outside / "evil"), "evil")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        for name, contents in {**evil, "link/evil_behind_a_link": b"evil", **synthetic.files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def test_an_archive_writes_nothing_but_the_files_of_the_data_set(tmp_path, monkeypatch):
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    synthetic = cifar10(50, 20, 0)
    synthetic = replace(synthetic, archive=hostile_archive(synthetic, outside))
    synthetic.trust(monkeypatch)
    synthetic.write_archive(folder)
    load("cifar10", folder=folder, download=False)
    assert list(tmp_path.rglob("*evil*")) == []
    assert list(outside.iterdir()) == []
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {*synthetic.files, ARCHIVE}
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_the_hostile_archive_would_have_written_elsewhere(tmp_path):
    """Proof that the test above can fail."""
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(hostile_archive(cifar10(50, 20, 0), outside))
    with tarfile.open(folder / ARCHIVE) as tar:
        assert "../evil" in tar.getnames()
        tar.extractall(folder, filter="fully_trusted")
    assert (tmp_path / "evil").exists()
    assert {path.name for path in outside.iterdir()} == {"evil", "evil_behind_a_link"}


def test_interrupted_unpacking_leaves_only_whole_files(tmp_path, monkeypatch):
    synthetic = make_cifar10(tmp_path, monkeypatch=monkeypatch, as_archive=True)
    copy, copied = shutil.copyfileobj, []

    def interrupt_third(dataset, target):
        copied.append(target.name)
        if len(copied) == 3:
            target.write(dataset.read(10))
            raise KeyboardInterrupt
        copy(dataset, target)

    monkeypatch.setattr(shutil, "copyfileobj", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", folder=tmp_path, download=False)
    assert len(list((tmp_path / CIFAR).iterdir())) == 2
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    dataset = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(in_memory(dataset.train).images, synthetic.train.images)
