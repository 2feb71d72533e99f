"""Files that are whole and hold more than weights, or are of another kind: they are read, or a line says what to do."""

import argparse
import collections
import datetime
import decimal
import functools
import gzip
import io
import pathlib
import pickle
import shlex
import tarfile
import types
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from models import densenet_bc
from tests.support.application import SMALL, run_here
from train.errors import DamagedFile, UserError
from train.run.files import load_tensors
from train.run.legacy_weights import load_legacy_weights

NETWORK = densenet_bc(10, 2)
WEIGHTS = NETWORK.state_dict()
OLD = {"_use_new_zipfile_serialization": False}
FORMS = {"archive": {}, "before archives": OLD}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "refs.pth"


def assert_weights(content):
    assert content.keys() == WEIGHTS.keys()
    assert all(torch.equal(content[name], WEIGHTS[name]) for name in WEIGHTS)


class WithNumbers:
    """NumPy would take eight bytes of text for the address of an object."""

    def __reduce__(self):
        return np._core.multiarray.scalar, (np.dtype("O"), b"AAAAAAAA")


# Values that training programs put beside weights.
HARMLESS = {
    "torchvision": {"args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=Path("b")))},
    "numpy": {"best": np.float64(71.3), "epoch": np.int64(3), "ok": np.bool_(True), "type": np.dtype("f4")},
    "arrays": {"array": np.arange(3), "random": np.random.default_rng(0).bit_generator.state, "text": np.str_("a")},
    "numpy's random state": {"random": np.random.RandomState(0).get_state()},
    "numpy's functions, misused": {"more": WithNumbers()},
    "times": {"now": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "took": datetime.timedelta(1)},
    "paths": {"path": pathlib.Path("a/b"), "pure": pathlib.PureWindowsPath("c")},
    "containers": {
        "losses": collections.defaultdict(list, a=[1.0]),
        "counts": collections.Counter("aab"),
        "last": collections.deque([1, 2], maxlen=3),
        "frozen": frozenset([1]),
    },
    "small values": {
        "a": types.SimpleNamespace(b=1),
        "b": decimal.Decimal("0.1"),
        "c": uuid.UUID(int=1),
        "d": range(3),
    },
    "torch's": {"a": torch.Size([1]), "b": torch.float16, "c": torch.device("cpu"), "d": torch.__version__, "e": b""},
}


@pytest.mark.parametrize("case", HARMLESS)
def test_weights_beside_harmless_values_are_read(case, path, capsys):
    allowed = set(torch.serialization.get_safe_globals())
    torch.save({"model": WEIGHTS, **HARMLESS[case]}, path)
    assert_weights(load_legacy_weights(path)["model"])
    assert capsys.readouterr().err == ""
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_values_of_other_types_are_left_out_and_all_others_come_back(path):
    plain = {"epoch": 3, "best": 0.5, "name": "a", "nothing": None, "sizes": [1, (2, 3)], "inner": {"a": {"b": True}}}
    other = argparse.Namespace(lr=0.1)
    torch.save({**plain, "inner": {"a": {"b": True, "c": other}, "d": other}, "e": other, "model": WEIGHTS}, path)
    loaded = load_legacy_weights(path)
    assert_weights(loaded.pop("model"))
    assert loaded == plain


def test_values_of_other_types_are_not_read_from_files_before_archives(path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, path, **OLD)
    with pytest.raises(DamagedFile, match=rf"^{path} is damaged, or holds a pickle, which could run code; [^\n]*$"):
        load_legacy_weights(path)


def test_threads_that_read_at_once_do_not_take_the_stand_ins_from_each_other(path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, path)
    with ThreadPoolExecutor(4) as threads:
        for loaded in threads.map(load_legacy_weights, [path] * 40):
            assert_weights(loaded["model"])


class Config(dict):
    """A type of a training program."""


# Files that torch refuses or that are read without their weights: the content, the types that are named, and the keys
# under which the weights are in the new file.
CONFIG, NET = f"{Config.__module__}.Config", "models.densenet.DenseNet, models.features.DenseBlock, "
REFUSED = {
    "beside weights": ({"net": WEIGHTS, "config": Config(lr=0.1)}, CONFIG, ["net"]),
    "beside other tensors": (
        {"rng": torch.ones(9), "net": {"inner": WEIGHTS, "args": argparse.Namespace(c=Config(lr=0.1))}},
        f"argparse.Namespace, {CONFIG}",
        ["net", "inner"],
    ),
    "around weights": (Config(net=WEIGHTS), CONFIG, ["net"]),
    "a network": (NETWORK, NET, []),
    "a network in a dict": ({"epoch": 3, "model": NETWORK, "rng": torch.ones(9)}, NET, ["model"]),
    "a network in an object": ({"all": argparse.Namespace(net=NETWORK)}, "argparse.Namespace, models.densenet.", None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_could_run_code_is_named_with_a_line_that_saves_the_weights_alone(case, form, path):
    content, named, keys = REFUSED[case]
    torch.save(content, path, **FORMS[form])
    with pytest.raises(DamagedFile, match=", which could run code") as refusal:
        load_legacy_weights(path)
    # Nothing shows that an old file is whole, and torch does not list its types.
    holds = f"is whole, but holds {named}" if form == "archive" else "is damaged, or holds a pickle, "
    assert str(refusal.value).startswith(f"{path} {holds}")
    assert "\n" not in str(refusal.value)
    line = str(refusal.value).split("; if you trust its author, save its weights alone: ")[1]
    program, flag, code = shlex.split(line)
    assert (program, flag) == ("python", "-c")
    exec(code, {})
    if keys is not None:
        assert_weights(functools.reduce(dict.get, keys, load_legacy_weights(path.with_name("refs.weights.pt"))))
    with pytest.raises(FileExistsError):  # a second time
        exec(code, {})


def test_a_line_for_a_file_of_a_strange_name_is_for_a_shell_too(tmp_path):
    path = tmp_path / """it's "$HOME" `x`.pth"""
    torch.save({"model": WEIGHTS, "config": Config(lr=0.1)}, path)
    with pytest.raises(DamagedFile) as refusal:
        load_legacy_weights(path)
    exec(shlex.split(str(refusal.value).split("alone: ", 1)[1])[2], {})
    assert_weights(load_legacy_weights(path.with_name(path.stem + ".weights.pt"))["model"])


@pytest.mark.parametrize("protocol", [4, 5])
def test_another_protocol_is_refused_with_a_line_too(protocol, path):
    torch.save({"model": WEIGHTS}, path, pickle_protocol=protocol)
    with pytest.raises(DamagedFile, match=r"is whole, but holds a pickle, which could run code; [^\n]*$") as refusal:
        load_legacy_weights(path)
    exec(shlex.split(str(refusal.value).split("alone: ", 1)[1])[2], {})
    assert_weights(load_legacy_weights(path.with_name("refs.weights.pt"))["model"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", ["harmless", "refused"])
def test_a_damaged_file_is_called_damaged_whatever_it_holds(content, form, path):
    more = argparse.Namespace(lr=0.1) if content == "harmless" else Config(lr=0.1)
    torch.save({"model": WEIGHTS, "more": more}, path, **FORMS[form])
    whole = path.read_bytes()
    damaged = [whole[:-1], whole[: len(whole) // 2], whole[:40]]
    if form == "archive":  # others have no checksum
        position = whole.index(WEIGHTS["features.conv0.weight"].numpy().tobytes())
        damaged += [whole[:p] + bytes([whole[p] ^ 4]) + whole[p + 1 :] for p in (position, whole.index(b"classifier"))]
    for contents in damaged:
        path.write_bytes(contents)
        with pytest.raises(DamagedFile, match=rf"^{path} is damaged[^\n]*$"):
            load_legacy_weights(path)


def archive(*names: str) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return buffer.getvalue()


def written(write) -> bytes:
    write(buffer := io.BytesIO())
    return buffer.getvalue()


def onnx_model() -> bytes:
    graph = onnx.helper.make_graph([], "graph", [], [])
    return onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()


def tar() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "is damaged: it is empty"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras writes; convert it with TensorFlow"),
    "Keras 3": (archive("config.json", "model.weights.h5"), "is a model of Keras; convert it"),
    "ONNX": (onnx_model(), "is an ONNX file, which has a network and no state_dict; name the file of weights"),
    "torch.export": (archive("m/archive_format", "m/models/model.json"), "is a program of torch.export; name the file"),
    "numpy": (written(lambda file: np.savez(file, a=np.ones(2))), "is an archive of NumPy arrays; save a dict of"),
    "an array": (written(lambda file: np.save(file, np.ones(2))), "is an array of NumPy; save a dict of"),
    "zip": (archive("a.txt"), "is an archive, but not one of torch.save; unpack it"),
    "gzip": (gzip.compress(b"weights"), "is packed by gzip; unpack it first: gunzip"),
    "tar": (tar(), "is a tar archive; unpack it first: tar -xf"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "fetch the file: git lfs pull"),
    "web page": (
        b"\n<!DOCTYPE html><html><title>404",
        "is a web page, as a failed download leaves it; download it again",
    ),
    "JSON": (b'{"flags": {}}', "is JSON, which holds no weights; name the file of weights"),
    "a pickle": (
        pickle.dumps({"a": 1}),
        "is a pickle that torch.save did not write; if you trust its author, save it by",
    ),
    "text": (b"epoch,loss\n", "is damaged, or is no file of tensors: it does not end like one"),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(case, path):
    content, message = KINDS[case]
    path.write_bytes(content)
    for load in (load_legacy_weights, load_tensors):
        with pytest.raises(DamagedFile) as refusal:
            load(path)
        assert str(refusal.value).startswith(f"{path} {message}" if message.startswith("is ") else f"{path} is ")
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_gets_a_line_that_saves_its_weights(path):
    torch.jit.save(torch.jit.trace(NETWORK.eval(), torch.zeros(1, 3, 32, 32)), path)
    with pytest.raises(DamagedFile, match="is a TorchScript archive; save its weights alone: python -c ") as refusal:
        load_legacy_weights(path)
    exec(shlex.split(str(refusal.value).split("alone: ")[1])[2], {})
    assert_weights(load_legacy_weights(path.with_name("refs.weights.pt")))


def test_a_folder_is_called_one_and_a_file_in_it_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: it is not a file, but a folder$"):
        load_legacy_weights(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UserError, match=f"but a folder; name a file in it, as {tmp_path / 'model.pt'}$"):
        load_legacy_weights(tmp_path)


@pytest.fixture
def safe(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: value.clone() for name, value in WEIGHTS.items()}, path, {"format": "pt"})
    return path


def test_safetensors_are_read(safe, capsys):
    assert_weights(load_legacy_weights(safe))
    warning = f"warning: {safe} is in safetensors, which has no checksum: damage would not be noticed\n"
    assert capsys.readouterr().err == warning
    with pytest.raises(DamagedFile, match=r"is a safetensors file, which only --init_weights and --weights take$"):
        load_tensors(safe)


@pytest.mark.parametrize("cut", [lambda whole: whole[:-1], lambda whole: whole[:100], lambda whole: whole + b"0"])
def test_damaged_safetensors_are_called_damaged(cut, safe, capsys):
    safe.write_bytes(cut(safe.read_bytes()))
    with pytest.raises(DamagedFile, match=r"model.safetensors is damaged, or is no safetensors file: [^\n]+$"):
        load_legacy_weights(safe)
    assert capsys.readouterr().err == ""


def test_a_run_begins_with_weights_of_torchvisions_script_and_says_which(tmp_path, capsys):
    path, average = tmp_path / "refs.pth", {f"module.{name}": value + 1 for name, value in WEIGHTS.items()}
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(1), "epoch": 3}
    torch.save({"model": WEIGHTS, "model_ema": {"n_averaged": torch.tensor(2), **average}, **beside}, path)
    words = [*SMALL, "--n_epochs=1", "--limit_batches=1", "--lr=1e-30", "--wd=0"]
    assert run_here(*words, f"--init_weights={path}", f"--save={tmp_path / 'run'}") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Beginning with the weights in {path} ('model', not 'model_ema')"
    trained = torch.load(tmp_path / "run/model.pt", weights_only=True)
    for name, value in NETWORK.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), rtol=0, atol=1e-12)
