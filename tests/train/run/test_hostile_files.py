"""Files whose loading would run a program: none does."""

import argparse
import hashlib
import importlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.application import SMALL, everything_in, run_here
from tests.support.malicious_pickle import Hostile
from tests.support.synthetic_datasets import cifar10, cifar100
from train.run.files import DamagedFile, load_tensors, serialize
from train.run.legacy_weights import load_legacy_weights

TENSOR_FILES = ["checkpoint.pt", "checkpoint.previous.pt", "model.pt"]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


def as_torch_writes_it(content, path):
    torch.save(content, path)


def as_torch_wrote_it_before_archives(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_a_plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


RUNS_CODE = r"is whole, but holds \w+\.mkdir, which could run code"
# How a file is called that was written in one of these ways.
CALLED = {
    "sealed": RUNS_CODE,
    "torch": RUNS_CODE,
    "old torch": "is in the form of PyTorch before 1.6, which has no checksums",
    "pickle": "is a pickle that torch.save did not write",
}
WAYS = {
    "sealed": lambda content, path: path.write_bytes(serialize(content)),
    "torch": as_torch_writes_it,
    "old torch": as_torch_wrote_it_before_archives,
    "pickle": as_a_plain_pickle,
}


def load_carelessly(path):
    """Load a file as a careless program does; what becomes of it afterwards does not matter."""
    with suppress(RuntimeError, pickle.UnpicklingError):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_file_of_tensors_runs_only_where_it_is_loaded_carelessly(way, tmp_path, marker):
    path = tmp_path / "file.pt"
    WAYS[way]({"weights": torch.ones(2), "more": Hostile(marker)}, path)
    with pytest.raises(DamagedFile) as refusal:
        load_tensors(path)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()
    load_carelessly(path)
    assert marker.exists()


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    """Makes a folder when its state is set."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        Path(state["marker"]).mkdir()


class New:
    """Makes a folder when an object is made."""

    def __new__(cls, marker):
        Path(marker).mkdir(exist_ok=True)
        return super().__new__(cls)

    def __init__(self, marker):
        self.marker = marker

    def __getnewargs__(self):
        return (str(self.marker),)


# Types and functions that torch does not know: their values are left out, and the weights beside them are read.
UNKNOWN = {
    "eval": lambda marker: Calls(eval, f"__import__('os').mkdir({str(marker)!r})"),
    "exec": lambda marker: Calls(exec, f"import os; os.mkdir({str(marker)!r})"),
    "a program": lambda marker: Calls(subprocess.call, ["mkdir", str(marker)]),
    "a function of a library": lambda marker: Calls(shutil.copyfile, __file__, str(marker)),
    "a state": Stateful,
    "a new object": New,
    "inside a harmless value": lambda marker: argparse.Namespace(more=[Stateful(marker)]),
}


@pytest.mark.parametrize("way", ["sealed", "torch"])
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_runs_code_beside_weights_does_not_run_and_is_left_out(case, way, tmp_path, marker):
    path = tmp_path / "file.pt"
    content = {"weights": torch.ones(2), "more": UNKNOWN[case](marker), "inner": {"more": UNKNOWN[case](marker)}}
    WAYS[way](content, path)
    with suppress(OSError):
        marker.rmdir()  # `New` has made it
    loaded = load_tensors(path)
    assert torch.equal(loaded.pop("weights"), torch.ones(2))
    assert loaded == {"inner": {}}
    assert not marker.exists()
    with suppress(OSError):
        load_carelessly(path)
    assert marker.exists()


def test_a_module_that_a_file_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "named_in_a_file.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    thing = importlib.import_module("named_in_a_file").Thing()
    torch.save({"weights": torch.ones(2), "more": thing}, tmp_path / "file.pt")
    monkeypatch.delitem(sys.modules, "named_in_a_file")
    assert load_tensors(tmp_path / "file.pt").keys() == {"weights"}
    assert "named_in_a_file" not in sys.modules
    load_carelessly(tmp_path / "file.pt")
    assert sys.modules.pop("named_in_a_file")


ALONE = UNKNOWN | {"a method of an object": lambda marker: Calls(marker.mkdir)}


@pytest.mark.parametrize("way", ["sealed", "torch", "old torch"])
@pytest.mark.parametrize("case", ALONE)
def test_a_file_of_nothing_else_is_refused(case, way, tmp_path, marker):
    path = tmp_path / "file.pt"
    WAYS[way]({"epoch": 3, "more": ALONE[case](marker)}, path)
    with suppress(OSError):
        marker.rmdir()
    held = "is damaged, or holds a pickle" if way == "old torch" else r"is whole, but holds [\w., ]+"
    with pytest.raises(DamagedFile, match=rf"file\.pt {held}, which could run code; [^\n]*$"):
        load_legacy_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_hostile_checkpoints_are_refused_in_one_line(way, copy, marker, tmp_path, capsys):
    for name in TENSOR_FILES:
        WAYS[way]({"format": 1, "rows": [], "network": Hostile(marker)}, copy / name)
    before = everything_in(tmp_path)
    assert run_here(f"--save={copy}", "--resume") == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert re.match(rf"demo.py: error: {copy / 'checkpoint.pt'} {CALLED[way]}", error)
    assert re.search(f"{copy / 'checkpoint.previous.pt'} {CALLED[way]}", error)
    assert error.count("\n") == 1
    assert everything_in(tmp_path) == before
    assert not marker.exists()
    for name in TENSOR_FILES:
        load_carelessly(copy / name)
        marker.rmdir()  # it was made


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_checkpoint_gives_way_to_the_one_before(way, copy, marker, capsys):
    WAYS[way]({"format": 1, "network": Hostile(marker)}, copy / "checkpoint.pt")
    assert run_here(f"--save={copy}", "--resume") == 0
    assert re.match(f"warning: {copy / 'checkpoint.pt'} {CALLED[way]}", capsys.readouterr().err)
    assert not marker.exists()


@pytest.mark.parametrize("way", WAYS)
def test_hostile_weights_are_never_read(way, copy, finished, marker):
    WAYS[way](Hostile(marker) if way == "pickle" else {"weights": Hostile(marker)}, copy / "model.pt")
    assert run_here(f"--save={copy}", "--resume") == 0
    assert not marker.exists()
    assert (copy / "model.pt").read_bytes() == (finished / "model.pt").read_bytes()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_compressed_member_is_refused(sealed, finished, tmp_path):
    """It may grow to any size when it is read."""
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(finished / "model.pt") as stored, zipfile.ZipFile(path, "w") as archive:
        for member in stored.infolist():
            archive.writestr(member.filename, stored.read(member), compress_type=zipfile.ZIP_DEFLATED)
    torch.load(path, weights_only=True)  # reads it
    if sealed:
        seal(path)
    with pytest.raises(DamagedFile, match="it is compressed"):
        load_tensors(path)


def seal(path):
    """Give an archive a digest of its contents, as ours have."""

    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"sha256 " + bytes(64)
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())


def test_a_config_that_is_a_pickle_is_refused_in_one_line(copy, marker, tmp_path, capsys):
    (copy / "config.json").write_bytes(pickle.dumps({"flags": Hostile(marker)}))
    before = everything_in(tmp_path)
    assert run_here(f"--save={copy}", "--resume") == 2
    error = capsys.readouterr().err
    assert f"{copy / 'config.json'} cannot be read: " in error
    assert error.count("\n") == 1
    assert everything_in(tmp_path) == before
    pickle.loads((copy / "config.json").read_bytes())
    assert marker.exists()


def test_a_config_cannot_ask_for_more_than_a_command_line(copy, capsys):
    for flag, value in (("help", True), ("data", "else\0where"), ("-- --depth", 10), ("", ""), ("depth", [10])):
        (copy / "config.json").write_text(json.dumps({"flags": {"dataset": "digits", flag: value}}))
        code = run_here(f"--save={copy}", "--resume")
        out, error = capsys.readouterr()
        assert (code, out, error.count("\n")) == (2, "", 1)


DATA = {"cifar10": (cifar10, "cifar-10-batches-py"), "cifar100": (cifar100, "cifar-100-python")}
PICKLES = [
    *[("cifar10", name) for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]],
    *[("cifar100", name) for name in ("train", "test", "meta")],
]


def train_on(dataset, tmp_path):
    words = [*SMALL[1:], f"--dataset={dataset}", "--n_epochs=1", "--valid_size=10", "--download=False"]
    return run_here(*words, f"--data={tmp_path / 'data'}", f"--save={tmp_path / 'save'}")


@pytest.mark.parametrize(("dataset", "name"), PICKLES)
def test_a_hostile_pickle_of_images_is_refused_in_one_line(dataset, name, tmp_path, marker, monkeypatch, capsys):
    make, folder = DATA[dataset]
    made = make(100, 100, 0)
    made.trust(monkeypatch)
    made.with_files({**made.files, f"{folder}/{name}": pickle.dumps(Hostile(marker))}).write_files(tmp_path / "data")
    before = everything_in(tmp_path)
    assert train_on(dataset, tmp_path) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"demo.py: error: {tmp_path / 'data' / folder / name} is corrupted")
    assert error.count("\n") == 1
    assert everything_in(tmp_path) == before
    pickle.loads((tmp_path / "data" / folder / name).read_bytes())
    assert marker.exists()


def archive_with_links(made, outside):
    """An archive whose members of the data set's names are links to files elsewhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number, name in enumerate(made.files):
            link = tarfile.TarInfo(name)
            link.type = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)[number % 4]
            link.linkname = str(outside / Path(name).name)
            tar.addfile(link)
    return buffer.getvalue()


def test_an_archive_of_links_puts_nothing_in_place(tmp_path, monkeypatch, capsys):

    made = cifar10(100, 100, 0)
    made = replace(made, archive=archive_with_links(made, tmp_path / "outside"))
    made.trust(monkeypatch)
    made.write_archive(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    before = everything_in(tmp_path)
    assert train_on("cifar10", tmp_path) == 2
    error = capsys.readouterr().err
    assert "does not hold cifar-10-batches-py/" in error
    assert error.count("\n") == 1
    assert everything_in(tmp_path) == before
