"""Files that are missing, corrupted or unreadable are named, and stay as they are."""

import os
import pickle
import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from data.datasets import load
from data.download.downloads import Downloads
from data.errors import CorruptedData, DataError, MissingData, NoNetwork, listed
from data.files import ensure
from data.known_files import File
from tests.support.dataset_files import (
    ADDRESS,
    ARCHIVE,
    CIFAR,
    KINDS,
    SVHN_ADDRESS,
    contents_of,
    flip_a_byte,
    in_memory,
    refused,
)
from tests.support.malicious_pickle import Hostile
from tests.support.synthetic_datasets import MAKERS, cifar10, make_cifar10, md5

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("exists", [True, False])
def test_missing_files_are_named_with_their_path_and_address(name, exists, tmp_path, server):
    _, path, address = KINDS[name]
    folder = tmp_path if exists else tmp_path / "not" / "there"
    message = refused(MissingData, name, folder)
    archive_or_file = path.name if name == "svhn" else address.rpartition("/")[2]
    assert str(folder / archive_or_file if exists else folder) in message
    assert archive_or_file in message
    assert address in message
    if exists:
        assert str(folder / path) in message
    assert server.asked == []
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize("path", ["data_batch_1", "data_batch_4", "test_batch", "batches.meta"])
def test_any_missing_member_is_named(path, tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch=monkeypatch)
    (tmp_path / CIFAR / path).unlink()
    before = contents_of(tmp_path)
    message = refused(MissingData, "cifar10", tmp_path)
    for part in (str(tmp_path / CIFAR / path), str(tmp_path / ARCHIVE), ADDRESS, "--download True"):
        assert part in message
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("download", [True, False])
def test_one_flipped_bit_in_any_file_is_found(name, download, tmp_path, monkeypatch, server):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    server.contents = synthetic.downloads
    for path, contents in synthetic.files.items():
        flip_a_byte(tmp_path / path)
        before = contents_of(tmp_path)
        message = refused(CorruptedData, name, tmp_path, download=download)
        address = SVHN_ADDRESS.format(path) if name == "svhn" else synthetic.reader.url
        assert str(tmp_path / path) in message
        assert address in message
        assert contents_of(tmp_path) == before
        (tmp_path / path).write_bytes(contents)
    assert server.asked == []
    load(name, folder=tmp_path, download=download)


@pytest.mark.parametrize("name", KINDS)
def test_all_corrupted_files_are_named_in_one_line(name, tmp_path, monkeypatch):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    names = [*synthetic.files][:3]
    flip_a_byte(tmp_path / names[0])
    flip_a_byte(tmp_path / names[2])
    (tmp_path / names[1]).unlink()
    (tmp_path / names[1]).mkdir()
    message = refused(CorruptedData, name, tmp_path)
    assert f"{tmp_path / names[1]} is not a file; move it away" in message
    assert f"{tmp_path / names[0]} and {tmp_path / names[2]} are corrupted: their md5 digests are not " in message


@pytest.mark.parametrize("name", KINDS)
def test_all_missing_files_are_named_in_one_line(name, tmp_path, monkeypatch):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    names = [*synthetic.files][:3]
    for path in names:
        (tmp_path / path).unlink()
    message = refused(MissingData, name, tmp_path)
    paths, _, _ = message.partition(" are missing")
    assert sorted(paths.replace(" and ", ", ").split(", ")) == sorted(str(tmp_path / path) for path in names)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, "1"), (2, "1 and 2"), (3, "1, 2 and 3"), (10, "1, 2, 3, 4, 5, 6, 7, 8, 9 and 10")]
)
def test_names_are_listed_as_in_a_sentence(number, expected):
    names = range(1, number + 1)
    assert listed(names) == expected
    assert listed([*range(1, 2001)]) == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1,990 more"


@pytest.mark.parametrize("way", ["by its name", "renamed", "linked"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_folder_of_the_files_itself_may_be_named(name, way, tmp_path, monkeypatch, server):
    synthetic = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    folder = tmp_path / synthetic.reader.base_folder
    if way == "renamed":
        folder = folder.rename(tmp_path / "mine")
    elif way == "linked":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    before = contents_of(tmp_path)
    dataset = load(name, folder=folder, download=True)
    assert torch.equal(in_memory(dataset.train).images, synthetic.train.images)
    assert torch.equal(dataset.test.labels, synthetic.test.labels)
    assert dataset.classes == synthetic.classes
    assert server.asked == []
    assert contents_of(tmp_path) == before


def test_files_missing_from_such_a_folder_are_named_or_downloaded_into_it(tmp_path, monkeypatch, server):
    synthetic = make_cifar10(tmp_path, monkeypatch=monkeypatch)
    (tmp_path / CIFAR / "data_batch_2").unlink()
    message = refused(MissingData, "cifar10", tmp_path / CIFAR)
    assert f"{tmp_path / CIFAR / 'data_batch_2'} is missing, and so is {tmp_path / CIFAR / ARCHIVE}" in message
    server.contents = synthetic.downloads
    dataset = load("cifar10", folder=tmp_path / CIFAR, download=True)
    assert torch.equal(in_memory(dataset.train).images, synthetic.train.images)


def files_of(synthetic):
    members = [File(path, md5(contents), synthetic.reader.url) for path, contents in synthetic.files.items()]
    return {
        "members": members,
        "archive": File(synthetic.reader.filename, md5(synthetic.archive), synthetic.reader.url),
    }


def together(number, work):
    """Run a function in several threads, in place of independent processes, and return the errors."""
    errors = []

    def try_to():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=try_to) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return errors


class Meeting:
    """Holds each thread on its first call until all of them have come."""

    def __init__(self, number):
        self.barrier, self.seen = threading.Barrier(number, timeout=30), set()

    def __call__(self):
        if threading.get_ident() not in self.seen:
            self.seen.add(threading.get_ident())
            self.barrier.wait()


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("moment", ["before a file", "after a file"])
def test_runs_that_unpack_at_once_all_find_the_files(moment, number, tmp_path, monkeypatch):
    synthetic = cifar10(50, 20, 0)
    copy = shutil.copyfileobj
    for attempt in range(3):
        folder, meet = tmp_path / str(attempt), Meeting(number)
        synthetic.write_archive(folder)

        def copy_together(dataset, target, meet=meet):
            if moment == "before a file":
                meet()
            copy(dataset, target)
            target.flush()
            if moment == "after a file":
                meet()

        monkeypatch.setattr(shutil, "copyfileobj", copy_together)
        assert together(number, lambda folder=folder: ensure(folder, **files_of(synthetic), download=False)) == []
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == {**synthetic.files, ARCHIVE: synthetic.archive}


def test_of_runs_that_download_at_once_one_downloads_and_all_find_the_files(tmp_path, server):
    synthetic, lines = cifar10(50, 20, 0), []
    server.contents = synthetic.downloads
    folder, downloads = tmp_path / "new", Downloads(notify=lines.append)

    def wait_for_the_others():
        patience = time.monotonic() + 10
        while sum(line.startswith("Waiting") for line in lines) < 2 and time.monotonic() < patience:
            time.sleep(0.01)

    server.on_read = wait_for_the_others
    assert together(3, lambda: ensure(folder, **files_of(synthetic), download=True, downloads=downloads)) == []
    waiting = f"Waiting for another program that is downloading '{folder / ARCHIVE}'"
    assert sorted(lines) == [f"Downloading {ADDRESS} to '{folder / ARCHIVE}'", waiting, waiting]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {**synthetic.files, ARCHIVE: synthetic.archive}


def test_a_failed_download_does_not_matter_if_the_file_has_arrived_in_the_meantime(tmp_path, server):
    synthetic = cifar10(50, 20, 0)
    server.contents = synthetic.downloads

    def come_and_fail():
        synthetic.write_archive(tmp_path)
        raise ConnectionResetError("reset")

    server.on_read = come_and_fail
    ensure(tmp_path, **files_of(synthetic), download=True)
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, str(CIFAR)}


def test_a_file_that_arrives_in_the_meantime_with_other_contents_stays(tmp_path, server):
    synthetic = cifar10(50, 20, 0)
    server.contents = synthetic.downloads
    server.on_read = lambda: (tmp_path / ARCHIVE).write_bytes(b"mine")
    with pytest.raises(CorruptedData, match="is corrupted"):
        ensure(tmp_path, **files_of(synthetic), download=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {ARCHIVE: b"mine"}


@pytest.mark.parametrize("came", [True, False])
def test_a_system_that_does_not_replace_a_file_in_use(came, tmp_path, monkeypatch):
    """As on Windows, while another process has it open."""
    synthetic = cifar10(50, 20, 0)
    synthetic.write_archive(tmp_path)

    def refuse(partial, path):
        if came:
            Path(path).write_bytes(Path(partial).read_bytes())
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "replace", refuse)
    with nullcontext() if came else pytest.raises(DataError, match="Permission denied"):
        ensure(tmp_path, **files_of(synthetic), download=False)
    assert {path.name for path in tmp_path.rglob("*.part")} == set()


@pytest.mark.parametrize("path", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("trusted", [True, False])
def test_only_files_with_the_right_digest_are_unpickled(path, trusted, tmp_path, monkeypatch):
    marker, folder = tmp_path / "marker", tmp_path / "data"
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    evil = synthetic.with_files({**synthetic.files, str(CIFAR / path): pickle.dumps(Hostile(marker))})
    evil.write_files(folder)
    if trusted:  # the pickle does work
        evil.trust(monkeypatch)
        with pytest.raises((TypeError, KeyError)):
            load("cifar10", folder=folder, download=False)
    else:
        refused(CorruptedData, "cifar10", folder)
    assert marker.exists() == trusted


def test_the_three_errors_differ_in_type_and_say_how_to_exit():
    assert len({MissingData, CorruptedData, NoNetwork}) == 3
    assert [error.exit_code for error in (DataError, MissingData, CorruptedData, NoNetwork)] == [2, 2, 2, 1]
    assert all(issubclass(error, DataError) for error in (MissingData, CorruptedData, NoNetwork))


@pytest.mark.parametrize("download", [True, False])
def test_a_data_folder_that_is_a_file(download, tmp_path, server):
    (tmp_path / "data").write_bytes(b"mine")
    message = refused(MissingData, "cifar10", tmp_path / "data", download=download)
    for part in (f"{tmp_path / 'data'} is not a folder", "--data", ARCHIVE, ADDRESS):
        assert part in message
    assert (tmp_path / "data").read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("download", [True, False])
def test_a_folder_in_the_place_of_a_file(download, tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch=monkeypatch)
    path = tmp_path / CIFAR / "test_batch"
    path.unlink()
    path.mkdir()
    message = refused(CorruptedData, "cifar10", tmp_path, download=download)
    assert f"{path} is not a file" in message
    assert ADDRESS in message
    assert path.is_dir()


@pytest.mark.parametrize("where", ["is_dir", "exists", "open"])
def test_a_folder_that_may_not_be_read_is_named(where, tmp_path, monkeypatch):
    """Simulated, since tests may run as root, who may read everything."""
    make_cifar10(tmp_path, monkeypatch=monkeypatch)

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    if where == "open":
        monkeypatch.setattr("data.files.has_digest", deny)
    else:
        original = getattr(Path, where)
        monkeypatch.setattr(Path, where, lambda path: (deny if tmp_path in (path, *path.parents) else original)(path))
    message = refused(DataError, "cifar10", tmp_path)
    assert f"cannot use the data folder {tmp_path}" in message
    assert "Permission denied" in message


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch=monkeypatch, as_archive=True)

    def deny(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", deny)
    message = refused(DataError, "cifar10", tmp_path)
    assert f"cannot use the data folder {tmp_path}" in message
    assert "Permission denied" in message
