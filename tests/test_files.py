"""Files that are missing, corrupted or may not be read are named, and stay as they are."""

import pickle
from pathlib import Path

import pytest

from data import files
from data.datasets import load
from data.errors import CorruptedData, DataError, MissingData, NoNetwork
from tests.data_files import ADDRESS, ARCHIVE, CIFAR, KINDS, SVHN_ADDRESS, contents_of, flip_a_byte, refused
from tests.hostile import Hostile
from tests.made_data import cifar10, make_cifar10, make_cifar100, make_svhn

pytestmark = pytest.mark.usefixtures("server")
MAKERS = {"cifar10": make_cifar10, "cifar100": make_cifar100, "svhn": make_svhn}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("exists", [True, False])
def test_missing_files_are_named_with_their_place_and_address(name, exists, tmp_path, server):
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
    made = MAKERS[name](tmp_path, monkeypatch=monkeypatch)
    server.contents = made.downloads
    for path, contents in made.files.items():
        flip_a_byte(tmp_path / path)
        before = contents_of(tmp_path)
        message = refused(CorruptedData, name, tmp_path, download=download)
        address = SVHN_ADDRESS.format(path) if name == "svhn" else made.reader.url
        assert str(tmp_path / path) in message
        assert address in message
        assert contents_of(tmp_path) == before
        (tmp_path / path).write_bytes(contents)
    assert server.asked == []
    load(name, folder=tmp_path, download=download)


@pytest.mark.parametrize("path", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("trusted", [True, False])
def test_only_files_with_the_right_digest_are_unpickled(path, trusted, tmp_path, monkeypatch):
    marker, folder = tmp_path / "marker", tmp_path / "data"
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    evil = made.with_files({**made.files, str(CIFAR / path): pickle.dumps(Hostile(marker))})
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
    """Simulated, as no folder is closed to the administrator, under whom tests may run."""
    make_cifar10(tmp_path, monkeypatch=monkeypatch)

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    if where == "open":
        monkeypatch.setattr(files, "check_integrity", deny)
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
