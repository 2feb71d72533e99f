"""Downloads, and the errors and files that are left if they fail."""

import os
import time
import traceback
from http.client import BadStatusLine

import pytest
import torch

from data.datasets import load
from data.download.downloads import Downloads, Limits
from data.errors import CorruptedData, MissingData, NoNetwork
from data.files import ensure
from data.known_files import File
from tests.support.dataset_files import ADDRESS, ARCHIVE, CIFAR, KINDS, SVHN_ADDRESS, contents_of, in_memory, refused
from tests.support.synthetic_datasets import cifar10, make_cifar10, make_svhn, md5

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize("name", KINDS)
def test_without_network_the_address_and_the_path_are_named(name, tmp_path, server):
    _, path, address = KINDS[name]
    message = refused(NoNetwork, name, tmp_path, download=True)
    place = tmp_path / path.name if name == "svhn" else tmp_path / address.rpartition("/")[2]
    for part in (str(place), address, "simulated name resolution failure"):
        assert part in message
    assert server.asked == [address]
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize("name", KINDS)
def test_a_failed_download_leaves_no_folder_that_it_created(name, tmp_path):
    (tmp_path / "mine").mkdir()
    before = contents_of(tmp_path)
    refused(NoNetwork, name, tmp_path / "mine" / "made" / "deep", download=True)
    assert contents_of(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_download_is_read_like_files_that_were_there(name, tmp_path, monkeypatch, server, capsys):
    synthetic = KINDS[name][0]()
    synthetic.trust(monkeypatch)
    server.contents = synthetic.downloads
    folder = tmp_path / "new" / "folder"
    dataset = load(name, folder=folder, download=True)
    for ours, expected in ((dataset.train, synthetic.train), (dataset.test, synthetic.test)):
        assert torch.equal(in_memory(ours).images, expected.images)
        assert torch.equal(ours.labels, expected.labels)
    assert sorted(server.asked) == sorted(synthetic.downloads)
    assert all(f"Downloading {address} to '{folder}" in capsys.readouterr().out for address in server.asked[:1])
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {*synthetic.files} | ({synthetic.reader.filename} if synthetic.archive else set())
    before = contents_of(folder)
    load(name, folder=folder, download=True)
    assert contents_of(folder) == before


def test_only_what_is_missing_is_downloaded(tmp_path, monkeypatch, server):
    synthetic = make_svhn(tmp_path, monkeypatch=monkeypatch)
    server.contents = synthetic.downloads
    kept = contents_of(tmp_path)["train_32x32.mat"]
    (tmp_path / "extra_32x32.mat").unlink()
    load("svhn", folder=tmp_path, download=True)
    assert server.asked == [SVHN_ADDRESS.format("extra_32x32.mat")]
    assert contents_of(tmp_path)["train_32x32.mat"] == kept


def test_a_download_gets_its_name_when_it_is_complete(tmp_path, monkeypatch, server):
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    server.contents = synthetic.downloads
    seen = []
    server.on_read = lambda: seen.append([path.name for path in tmp_path.iterdir()])
    load("cifar10", folder=tmp_path, download=True)
    assert seen
    assert all(names == [f"{ARCHIVE}.part"] for names in seen)
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, str(CIFAR)}


def test_the_rest_of_a_killed_download_is_not_taken_for_the_file(tmp_path, monkeypatch, server):
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    server.contents = synthetic.downloads
    rest = tmp_path / f"{ARCHIVE}.0123456789abcdef.part"
    rest.write_bytes(synthetic.archive[:100])
    refused(MissingData, "cifar10", tmp_path)
    load("cifar10", folder=tmp_path, download=True)
    assert {path.name for path in tmp_path.iterdir()} == {ARCHIVE, str(CIFAR), rest.name}


def test_leftovers_of_killed_programs_are_removed_after_a_day_and_nothing_else(tmp_path, monkeypatch):
    make_cifar10(tmp_path, monkeypatch=monkeypatch)
    of_ours = [f"{ARCHIVE}.part", f"{ARCHIVE}.0123456789abcdef.part", f"{CIFAR}/data_batch_3.fedcba9876543210.part"]
    of_others = [f"{ARCHIVE}.mine.part", "other.part", f"{CIFAR}/notes.0123456789abcdef.part", f"{CIFAR}/data_batch_3"]
    for name in [*of_ours, *of_others[:-1]]:
        (tmp_path / name).write_bytes(b"rest")
    load("cifar10", folder=tmp_path, download=False)
    assert all((tmp_path / name).exists() for name in of_ours)  # somebody may be writing it
    for name in [*of_ours, *of_others]:
        os.utime(tmp_path / name, (0, time.time() - 25 * 3600))
    load("cifar10", folder=tmp_path, download=False)
    assert not any((tmp_path / name).exists() for name in of_ours)
    assert all((tmp_path / name).exists() for name in of_others)


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
def test_a_download_that_brings_nothing_leaves_nothing(failure, tmp_path, server):
    def fail():
        raise failure

    synthetic, folder = cifar10(50, 20, 0), tmp_path / "new"
    server.contents, server.on_read = synthetic.downloads, fail
    archive = File(ARCHIVE, md5(synthetic.archive), ADDRESS)
    with pytest.raises(NoNetwork, match="has sent nothing for 30 s" if "timed" in str(failure) else str(failure)):
        ensure(folder, members=[archive], archive=None, download=True, downloads=Downloads(limits=Limits(pauses=())))
    assert contents_of(tmp_path) == {}


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch, server):
    def interrupt():
        raise KeyboardInterrupt

    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    server.contents = synthetic.downloads
    server.on_read = interrupt
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", folder=tmp_path / "new", download=True)
    assert contents_of(tmp_path) == {}


def test_errors_keep_their_cause(tmp_path):
    with pytest.raises(NoNetwork) as caught:
        load("cifar10", folder=tmp_path, download=True)
    assert "URLError" in "".join(traceback.format_exception(caught.value))


def test_a_download_is_announced_through_the_callback(tmp_path, monkeypatch, server, capsys):
    synthetic = cifar10(50, 20, 0)
    synthetic.trust(monkeypatch)
    server.contents = synthetic.downloads
    lines: list[str] = []
    for _ in range(2):  # the second time everything is there
        load("cifar10", folder=tmp_path, download=True, notify=lines.append)
    assert lines == [f"Downloading {ADDRESS} to '{tmp_path / ARCHIVE}'"]
    assert "Downloading" not in capsys.readouterr().out
