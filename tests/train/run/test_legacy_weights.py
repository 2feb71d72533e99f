"""Weights in the form that torch.save had before archives, as torchvision's files for ImageNet have."""

import hashlib
import json
import os
import pickle
import shutil
import struct

import pytest
import torch

from commands.saved_run import read_saved_run
from commands.train import steps
from models import densenet_bc
from tests.support.application import SMALL, run_here
from tests.support.malicious_pickle import Hostile
from train.errors import UserError
from train.run.files import DamagedFile
from train.run.legacy_weights import load_legacy_weights


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def weights():
    return densenet_bc(10, 2).state_dict()


def test_both_forms_hold_the_same(weights, tmp_path, capsys):
    torch.save(weights, tmp_path / "new.pt")
    new, old = load_legacy_weights(tmp_path / "new.pt"), load_legacy_weights(save_old(weights, tmp_path / "old.pth"))
    assert new.keys() == old.keys() == weights.keys()
    assert all(torch.equal(old[name], value) and torch.equal(new[name], value) for name, value in weights.items())
    warning = (
        f"warning: {tmp_path / 'old.pth'} is in torch's old form, which has no checksum: damage would not be noticed\n"
    )
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(("begin", "digest"), [("densenet121", hashlib.sha256), ("densenet100-0416", hashlib.sha1)])
def test_the_digest_in_a_name_is_verified(begin, digest, weights, tmp_path, capsys):
    content = save_old(weights, tmp_path / "old.pth").read_bytes()
    path = tmp_path / f"{begin}-{digest(content).hexdigest()[:24]}.pth"
    path.write_bytes(content)
    assert load_legacy_weights(path).keys() == weights.keys()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFile, match="is damaged: its digest is not the one in its name"):
        load_legacy_weights(path)
    assert capsys.readouterr().err == ""


def test_a_date_in_a_name_is_no_digest(weights, tmp_path, capsys):
    path = save_old(weights, tmp_path / "digits-20261130.pth")
    assert load_legacy_weights(path).keys() == weights.keys()
    assert "which has no checksum" in capsys.readouterr().err


def test_a_run_without_a_finished_epoch_has_no_weights_to_take(tmp_path):
    torch.save({"rows": [], "chosen": {}, "network": {"a": torch.ones(1)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="has not finished an epoch, and so has no chosen weights yet"):
        load_legacy_weights(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("size", [15, 16, 100, 1000])
def test_a_file_that_is_cut_off_is_one_line(size, weights, tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(save_old(weights, path).read_bytes()[:size])
    with pytest.raises(DamagedFile, match=r"^[^\n]* is damaged, or is no file of tensors: [^\n]*$"):
        load_legacy_weights(path)


def as_python_2_saves(weights) -> bytes:
    """Names as byte strings, an OrderedDict of pairs, and storages of a GPU, as in torchvision's files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    pairs, data = b"", b""
    for key, (name, value) in enumerate(weights.items()):
        kind = {torch.float32: "Float", torch.int64: "Long"}[value.dtype]
        storage = b"(" + text("storage") + f"ctorch.cuda\n{kind}Storage\n".encode() + text(str(key)) + text("cuda:0")
        storage += b"J" + struct.pack("<i", value.numel()) + b"NtQ"
        tensor = b"(" + storage + b"K\0" + numbers(value.shape) + numbers(value.stride()) + b"t"
        pairs += b"](" + text(name) + b"ctorch._utils\n_rebuild_tensor\n" + tensor + b"Re"
        data += struct.pack("<q", value.numel()) + value.numpy().tobytes()
    keys = b"\x80\x02](" + b"".join(text(str(key)) for key in range(len(weights))) + b"e."
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]  # as torch.save begins
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    return head + b"\x80\x02ccollections\nOrderedDict\n](" + pairs + b"e\x85R." + keys + data


def test_files_of_python_2_are_read(weights, tmp_path):
    (tmp_path / "old.pth").write_bytes(as_python_2_saves(weights))
    loaded = load_legacy_weights(tmp_path / "old.pth")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_a_hostile_pickle_does_not_run(tmp_path):
    path = save_old({"weight": Hostile(tmp_path / "ran")}, tmp_path / "old.pth")
    torch.load(path, weights_only=False)
    (tmp_path / "ran").rmdir()  # it would have run
    with pytest.raises(DamagedFile, match=r"is damaged, or holds a pickle, which could run code"):
        load_legacy_weights(path)
    assert not (tmp_path / "ran").exists()


def test_a_run_begins_with_them_and_gets_a_new_classifier_for_other_classes(tmp_path, capsys):
    torch.manual_seed(5)
    theirs = densenet_bc(10, 2, num_classes=7)
    path = save_old({f"module.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "old.pth")
    words = [*SMALL, "--n_epochs=1", "--limit_batches=1", "--lr=1e-30", "--wd=0"]
    assert run_here(*words, f"--init_weights={path}", f"--save={tmp_path / 'run'}") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"Beginning with the weights in {path} and a new classifier"
    ours = torch.load(tmp_path / "run/model.pt", weights_only=True)
    for name, parameter in theirs.named_parameters():
        if not name.startswith("classifier"):
            torch.testing.assert_close(ours[name], parameter.detach(), rtol=0, atol=1e-12)


def test_they_take_no_memory_once_the_network_has_them(weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "weights.pt")
    in_training = []
    fit = steps.fit

    def note(replicas, inputs, *others):
        in_training.append(inputs.initial_weights)
        return fit(replicas, inputs, *others)

    monkeypatch.setattr(steps, "fit", note)
    words = [*SMALL, "--limit_batches=1", "--n_epochs=1", f"--save={tmp_path / 'run'}"]
    assert run_here(*words, f"--init_weights={tmp_path / 'weights.pt'}") == 0
    assert in_training == [{}]


def test_a_run_that_goes_on_needs_them_no_more(weights, tmp_path, capsys):
    torch.save(weights, tmp_path / "weights.pt")
    words = [*SMALL, "--limit_batches=1", f"--init_weights={tmp_path / 'weights.pt'}", f"--save={tmp_path / 'run'}"]
    assert run_here(*words, "--n_epochs=1") == 0
    assert "Beginning with the weights in " in capsys.readouterr().out
    (tmp_path / "weights.pt").unlink()
    assert run_here(*words, "--n_epochs=2", "--resume") == 0
    out = capsys.readouterr().out
    assert "Resuming after epoch 1." in out
    assert "Beginning with" not in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "weights.pt cannot be used: "),
        (densenet_bc(10, 3).state_dict(), "weights.pt cannot be used: "),
        ([1, 2], "holds no dict of tensors, but list"),
    ],
)
@pytest.mark.parametrize("data", [["--dataset=digits"], ["--dataset=cifar10", "--data=nowhere", "--download=False"]])
def test_weights_of_another_network_are_one_line_before_data_is_read(content, message, data, tmp_path, capsys):
    torch.save(content, tmp_path / "weights.pt")
    words = [*SMALL[1:], *data, f"--init_weights={tmp_path / 'weights.pt'}", f"--save={tmp_path / 'run'}"]
    assert run_here(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"demo.py: error: --init_weights {tmp_path / 'weights.pt'} cannot be used: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_with_weights_goes_on_and_says_from_which_file(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "--limit_batches=1", "--save=run"]
    assert run_here(*words, "--n_epochs=1", f"--init_weights={os.path.relpath(finished / 'model.pt')}") == 0
    assert run_here("--save=run", "--resume", "--n_epochs=2", f"--init_weights={finished / 'model.pt'}") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "moved/run")
    shutil.copy(finished / "model.pt", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert run_here("--save=run", "--resume", "--init_weights=model.pt") == 0
    assert run_here("--save=run", "--resume", "--init_weights=other.pt") == 2
    monkeypatch.chdir(tmp_path)
    origin = read_saved_run(tmp_path / "run").origin()
    assert json.loads(json.dumps(origin))["flags"]["init_weights"] == "model.pt"
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    config["flags"]["init_weights"] = os.path.relpath(finished / "model.pt")  # as older runs have it
    path.write_text(json.dumps(config))
    assert run_here("--save=run", "--resume", "--n_epochs=3") == 0
