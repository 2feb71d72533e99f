"""What is found, unpacked or downloaded, and what is said and left behind if that fails."""

import io
import os
import pickle
import socket
import tarfile
import traceback
from dataclasses import replace
from http.client import BadStatusLine
from pathlib import Path

import pytest
import torch

from data import files
from data.datasets import load
from data.errors import CorruptedData, DataError, MissingData, NoNetwork
from tests.made_data import Server, archived, cifar10, cifar100, make_cifar10, make_cifar100, make_svhn, md5, svhn

CIFAR = Path("cifar-10-batches-py")
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ADDRESS_100 = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
SVHN_ADDRESS = "http://ufldl.stanford.edu/housenumbers/{}"

# A function that makes a data set in memory, the file whose absence is told first, and where it comes from.
KINDS = {
    "cifar10": (lambda: cifar10(50, 20, 0), CIFAR / "data_batch_1", ADDRESS),
    "cifar100": (
        lambda: cifar100(50, 20, 0),
        Path("cifar-100-python/train"),
        ADDRESS_100,
    ),
    "svhn": (lambda: svhn(20, 20, 0, num_extra=20), Path("train_32x32.mat"), SVHN_ADDRESS.format("train_32x32.mat")),
}
MAKERS = {"cifar10": make_cifar10, "cifar100": make_cifar100, "svhn": make_svhn}


@pytest.fixture(autouse=True)
def server(monkeypatch):
    """No test here reaches a network: a server in memory, which knows no address before a test gives it some."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a test used the network"))
    return Server(monkeypatch)


def contents_of(folder):
    """All files, folders and links, with contents and times of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def refused(error, name, folder, *, download=False):
    """Load a data set that cannot be loaded, and return the one line that a user reads."""
    with pytest.raises(DataError) as caught:
        load(name, folder=folder, download=download)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "\n" not in message
    return message


def flip_a_byte(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


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


@pytest.mark.parametrize("download", [True, False])
def test_a_corrupted_archive_is_not_unpacked(download, tmp_path, monkeypatch, server):
    made = make_cifar10(tmp_path, monkeypatch=monkeypatch, as_archive=True)
    server.contents = made.downloads
    flip_a_byte(tmp_path / ARCHIVE)
    before = contents_of(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path, download=download)
    assert str(tmp_path / ARCHIVE) in message
    assert ADDRESS in message
    assert contents_of(tmp_path) == before
    assert server.asked == []


def test_a_corrupted_archive_does_not_matter_where_the_files_are_there(tmp_path, monkeypatch):
    made = make_cifar10(tmp_path, monkeypatch=monkeypatch)
    (tmp_path / ARCHIVE).write_bytes(b"not an archive")
    source = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(source.train.images, made.train.images)


def test_an_archive_that_lacks_a_member_is_named(tmp_path, monkeypatch):
    made = cifar10(50, 20, 0)
    lacking = str(CIFAR / "data_batch_3")
    archive = archived({path: contents for path, contents in made.files.items() if path != lacking})
    made = replace(made, archive=archive)
    made.trust(monkeypatch)
    made.write_archive(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    for part in (str(tmp_path / ARCHIVE), lacking, ADDRESS):
        assert part in message
    assert (tmp_path / ARCHIVE).read_bytes() == archive


def test_an_archive_with_a_wrong_member_puts_nothing_in_its_place(tmp_path, monkeypatch):
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    wrong = str(CIFAR / "data_batch_1")
    made = replace(made, archive=archived({**made.files, wrong: b"wrong"}))
    monkeypatch.setattr(made.reader, "tgz_md5", md5(made.archive))
    made.write_archive(tmp_path)
    before = contents_of(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    for part in (str(tmp_path / wrong), str(tmp_path / ARCHIVE), ADDRESS):
        assert part in message
    assert contents_of(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("contents", [b"no archive at all", archived({"a": b"a" * 9000})[:60]], ids=["text", "cut off"])
def test_an_archive_that_cannot_be_unpacked_is_named(contents, tmp_path, monkeypatch):
    made = replace(cifar10(50, 20, 0), archive=contents)
    made.trust(monkeypatch)
    made.write_archive(tmp_path)
    message = refused(CorruptedData, "cifar10", tmp_path)
    assert str(tmp_path / ARCHIVE) in message
    assert ADDRESS in message


def test_unpacking_completes_a_folder_and_replaces_nothing(tmp_path, monkeypatch):
    made = cifar10(50, 20, 0)
    notes = str(CIFAR / "readme.html")
    made = made.with_files(made.files, also_archived={notes: b"from the archive"})
    made.trust(monkeypatch)
    made.write_files(tmp_path)
    made.write_archive(tmp_path)
    (tmp_path / notes).write_bytes(b"my notes")
    (tmp_path / CIFAR / "data_batch_2").unlink()
    before = contents_of(tmp_path)
    source = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(source.train.images, made.train.images)
    after = contents_of(tmp_path)
    new = after.pop(str(CIFAR / "data_batch_2"))
    assert new[1] == made.files[str(CIFAR / "data_batch_2")]
    without_folder_times = {path: entry for path, entry in before.items() if entry[1] is not None}
    assert without_folder_times.items() <= after.items()
    assert after.keys() == before.keys() - {str(CIFAR / "data_batch_2")}


def hostile_archive(made, outside):
    """The files of a data set among members that would be written elsewhere."""
    evil = {name: b"evil" for name in ("../evil", str(outside / "evil"), "evil")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        for name, contents in {**evil, "link/evil_behind_a_link": b"evil", **made.files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def test_an_archive_writes_nothing_but_the_files_of_the_data_set(tmp_path, monkeypatch):
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    made = cifar10(50, 20, 0)
    made = replace(made, archive=hostile_archive(made, outside))
    made.trust(monkeypatch)
    made.write_archive(folder)
    load("cifar10", folder=folder, download=False)
    assert list(tmp_path.rglob("*evil*")) == []
    assert list(outside.iterdir()) == []
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {*made.files, ARCHIVE}
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_the_hostile_archive_would_have_written_elsewhere(tmp_path):
    """So that the test above can fail."""
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(hostile_archive(cifar10(50, 20, 0), outside))
    with tarfile.open(folder / ARCHIVE) as tar:
        assert "../evil" in tar.getnames()
        tar.extractall(folder, filter="fully_trusted")
    assert (tmp_path / "evil").exists()
    assert {path.name for path in outside.iterdir()} == {"evil", "evil_behind_a_link"}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("path", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("trusted", [True, False])
def test_only_files_with_the_right_digest_are_unpickled(path, trusted, tmp_path, monkeypatch):
    marker, folder = tmp_path / "marker", tmp_path / "data"
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    evil = made.with_files({**made.files, str(CIFAR / path): pickle.dumps(Evil(marker))})
    evil.write_files(folder)
    if trusted:  # the pickle does work
        evil.trust(monkeypatch)
        with pytest.raises((TypeError, KeyError)):
            load("cifar10", folder=folder, download=False)
    else:
        refused(CorruptedData, "cifar10", folder)
    assert marker.exists() == trusted


@pytest.mark.parametrize("name", KINDS)
def test_without_network_the_address_and_the_place_are_named(name, tmp_path, server):
    _, path, address = KINDS[name]
    message = refused(NoNetwork, name, tmp_path, download=True)
    place = tmp_path / path.name if name == "svhn" else tmp_path / address.rpartition("/")[2]
    for part in (str(place), address, "made-up name resolution failure"):
        assert part in message
    assert server.asked == [address]
    assert contents_of(tmp_path) == {}


def test_the_three_errors_differ_in_type_and_say_how_to_exit():
    assert len({MissingData, CorruptedData, NoNetwork}) == 3
    assert [error.exit_code for error in (DataError, MissingData, CorruptedData, NoNetwork)] == [2, 2, 2, 1]
    assert all(issubclass(error, DataError) for error in (MissingData, CorruptedData, NoNetwork))


@pytest.mark.parametrize("name", KINDS)
def test_a_failed_download_leaves_no_folder_that_it_made(name, tmp_path):
    (tmp_path / "mine").mkdir()
    before = contents_of(tmp_path)
    refused(NoNetwork, name, tmp_path / "mine" / "made" / "deep", download=True)
    assert contents_of(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_download_is_read_like_files_that_were_there(name, tmp_path, monkeypatch, server, capsys):
    made = KINDS[name][0]()
    made.trust(monkeypatch)
    server.contents = made.downloads
    folder = tmp_path / "new" / "folder"
    source = load(name, folder=folder, download=True)
    for ours, expected in ((source.train, made.train), (source.test, made.test)):
        assert torch.equal(ours.images, expected.images)
        assert torch.equal(ours.labels, expected.labels)
    assert sorted(server.asked) == sorted(made.downloads)
    assert all(f"Downloading {address} to {folder}" in capsys.readouterr().out for address in server.asked[:1])
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {*made.files} | ({made.reader.filename} if made.archive else set())
    before = contents_of(folder)
    load(name, folder=folder, download=True)
    assert contents_of(folder) == before


def test_only_what_is_missing_is_downloaded(tmp_path, monkeypatch, server):
    made = make_svhn(tmp_path, monkeypatch=monkeypatch)
    server.contents = made.downloads
    kept = contents_of(tmp_path)["train_32x32.mat"]
    (tmp_path / "extra_32x32.mat").unlink()
    load("svhn", folder=tmp_path, download=True)
    assert server.asked == [SVHN_ADDRESS.format("extra_32x32.mat")]
    assert contents_of(tmp_path)["train_32x32.mat"] == kept


def test_a_download_gets_its_name_when_it_is_complete(tmp_path, monkeypatch, server):
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    server.contents = made.downloads
    seen = []
    server.on_read = lambda: seen.append([path.name for path in tmp_path.iterdir()])
    load("cifar10", folder=tmp_path, download=True)
    assert seen
    assert all(names == [f"{ARCHIVE}.part"] for names in seen)
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, str(CIFAR)}


def test_the_rest_of_a_killed_download_is_not_taken_for_the_file(tmp_path, monkeypatch, server):
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    server.contents = made.downloads
    (tmp_path / f"{ARCHIVE}.part").write_bytes(made.archive[:100])
    refused(MissingData, "cifar10", tmp_path)
    load("cifar10", folder=tmp_path, download=True)
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, str(CIFAR)}


@pytest.mark.parametrize("name", KINDS)
def test_a_download_with_a_wrong_digest_leaves_nothing(name, tmp_path, server):
    _, path, address = KINDS[name]
    server.contents = {address: b"<html>please log in to this network</html>"}
    folder = tmp_path / "new" / "folder"
    message = refused(CorruptedData, name, folder, download=True)
    place = folder / path.name if name == "svhn" else folder / address.rpartition("/")[2]
    assert str(place) in message
    assert address in message
    assert contents_of(tmp_path) == {}


FAILURES = [ConnectionResetError("reset"), TimeoutError("timed out"), BadStatusLine("gibberish")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_download_that_breaks_off_leaves_nothing(failure, tmp_path, monkeypatch, server):
    def fail():
        raise failure

    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    # torchvision tries again without TLS.
    server.contents = {**made.downloads, ADDRESS.replace("https", "http"): made.archive}
    server.on_read = fail
    message = refused(NoNetwork, "cifar10", tmp_path / "new", download=True)
    assert str(failure) in message
    assert contents_of(tmp_path) == {}


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, server):
    def interrupt():
        raise KeyboardInterrupt

    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    server.contents = made.downloads
    server.on_read = interrupt
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", folder=tmp_path / "new", download=True)
    assert contents_of(tmp_path) == {}


def test_interrupted_unpacking_leaves_only_whole_files(tmp_path, monkeypatch):
    made = make_cifar10(tmp_path, monkeypatch=monkeypatch, as_archive=True)
    copy, copied = files.shutil.copyfileobj, []

    def interrupt_third(source, target):
        copied.append(target.name)
        if len(copied) == 3:
            target.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(files.shutil, "copyfileobj", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", folder=tmp_path, download=False)
    assert len(list((tmp_path / CIFAR).iterdir())) == 2
    monkeypatch.setattr(files.shutil, "copyfileobj", copy)
    source = load("cifar10", folder=tmp_path, download=False)
    assert torch.equal(source.train.images, made.train.images)


def test_a_silent_server_is_given_up_and_the_timeout_put_back(tmp_path, monkeypatch, server):
    made = cifar10(50, 20, 0)
    made.trust(monkeypatch)
    server.contents = made.downloads
    timeouts = set()
    server.on_read = lambda: timeouts.add(socket.getdefaulttimeout())
    before = socket.getdefaulttimeout()
    load("cifar10", folder=tmp_path, download=True)
    assert timeouts == {files.SILENT_SERVER_SECONDS}
    assert socket.getdefaulttimeout() == before


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


def test_errors_keep_their_cause(tmp_path):
    with pytest.raises(NoNetwork) as caught:
        load("cifar10", folder=tmp_path, download=True)
    assert "URLError" in "".join(traceback.format_exception(caught.value))
