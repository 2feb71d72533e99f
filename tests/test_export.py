"""Exported files compute what the trained network does, anywhere, and nothing is left where they do not."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import demo
from data.augment import normalise
from data.datasets import DATASETS, read_digits
from models import densenet_bc
from tests.application import ROOT, SMALL, everything_in, run_here
from train.export import network as export
from train.export.exporters import EXPORTERS
from train.export.formats import PACKAGES, SUFFIXES
from train.folder.saved_run import read_saved_run
from train.folder.saving import load_tensors, save_tensors

FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
BATCHES = (1, 2, 7)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of one epoch and its network in both formats, with what each command printed."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    assert run_here(*SMALL, "--n_epochs=1", f"--save={folder}") == 0
    printed = {}
    for name in FILES:
        with redirect_stdout(io.StringIO()) as out:
            assert run_here("export", f"--save={folder}", f"--format={name}") == 0
        printed[name] = out.getvalue()
    return folder, printed


@pytest.fixture
def here(exported, tmp_path, monkeypatch):
    """The folder that a command line stands in, with a copy of the run in `run`."""
    shutil.copytree(exported[0], tmp_path / "run", ignore=shutil.ignore_patterns(*FILES.values()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def batches(exported) -> dict[int, tuple[Tensor, Tensor]]:
    """Pixels from 0 to 1 of test images, and the network's own logits for them, normalised as in training."""
    network = densenet_bc(10, 2)
    network.load_state_dict(load_tensors(exported[0] / "model.pt"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATASETS["digits"].mean, DATASETS["digits"].std))
    images = read_digits(None, False).test.images
    with torch.no_grad():
        logits = network.eval()(normalise(images, mean, std))
    return {n: (images[-n:] / 255, logits[-n:]) for n in BATCHES}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


# Each program stands alone: it reads pixels, writes logits, and says which modules it has.
READ_TORCH = """
import sys, torch
network = torch.export.load(sys.argv[1]).module()
torch.save([network(pixels) for pixels in torch.load("pixels.pt")], "logits.pt")
"""
READ_ONNX = """
import sys, numpy, onnxruntime
network = onnxruntime.InferenceSession(sys.argv[1])
pixels = numpy.load("pixels.npz")
logits = [network.run(["logits"], {"images": pixels[name]})[0] for name in pixels]
numpy.savez("logits.npz", *logits)
assert "torch" not in sys.modules
"""
ALONE = """
for name in ("models", "data", "train", "demo"):
    try: __import__(name)
    except ModuleNotFoundError: pass
    else: raise SystemExit(f"{name} can be imported")
"""


def run_alone(program: str, folder, *words) -> None:
    """Run a program in a process that cannot import this code."""
    command = [sys.executable, "-I", "-c", ALONE + program, *map(str, words)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_torch_export_gives_the_networks_logits_without_our_code(exported, batches, tmp_path):
    torch.save([pixels for pixels, _ in batches.values()], tmp_path / "pixels.pt")
    run_alone(READ_TORCH, tmp_path, exported[0] / "model.pt2")
    for actual, (_, expected) in zip(torch.load(tmp_path / "logits.pt"), batches.values(), strict=True):
        assert_close(actual, expected)


def test_onnx_gives_the_networks_logits_without_our_code_and_without_torch(exported, batches, tmp_path):
    np.savez(tmp_path / "pixels.npz", *(pixels.numpy() for pixels, _ in batches.values()))
    run_alone(READ_ONNX, tmp_path, exported[0] / "model.onnx")
    logits = np.load(tmp_path / "logits.npz")
    for name, (_, expected) in zip(logits, batches.values(), strict=True):
        assert_close(torch.from_numpy(logits[name]), expected)


@pytest.mark.parametrize("name", FILES)
def test_what_a_user_reads(name, exported):
    folder, printed = exported
    path = folder / FILES[name]
    first, second = printed[name].splitlines()
    kind = {"torch": f"torch.export of torch {version('torch')}", "onnx": "ONNX, opset 18, read back by ONNX Runtime "}
    assert first.startswith(f"{path}: {kind[name]}")
    assert f", {path.stat().st_size:,} bytes; largest relative difference to the network's own logits " in first
    assert 0 <= float(first.split()[-1]) < 1e-5
    assert second == "images: float32 (N, 3, 32, 32), RGB, from 0 to 1; logits: float32 (N, 10)"


def metadata_of(folder, name: str) -> dict[str, str]:
    if name == "onnx":
        return {entry.key: entry.value for entry in onnx.load(folder / FILES[name]).metadata_props}
    texts = dict.fromkeys(("classes", "mean", "std", "image_size", "origin"), "")
    torch.export.load(folder / FILES[name], extra_files=texts)
    return texts


@pytest.mark.parametrize("name", FILES)
def test_classes_normalisation_and_origin_are_in_the_file(name, exported):
    folder, _ = exported
    told = {key: json.loads(text) for key, text in metadata_of(folder, name).items()}
    origin = told.pop("origin")
    assert told == {"classes": [*"0123456789"], "mean": [0.30511] * 3, "std": [0.32382] * 3, "image_size": 32}
    config = json.loads((folder / "config.json").read_text())
    assert (origin["versions"], origin["git_revision"]) == (config["versions"], config["git_revision"])
    assert origin["flags"] == {flag: config["flags"][flag] for flag in origin["flags"]}
    assert {"dataset", "depth", "growth_rate", "seed", "n_epochs", "lr"} <= origin["flags"].keys()


@pytest.mark.parametrize("name", FILES)
def test_no_folder_of_this_machine_is_named_in_the_file(name, exported):
    content = (exported[0] / FILES[name]).read_bytes()
    for folder in (ROOT, exported[0], sys.prefix):
        assert str(folder).encode() not in content


def test_onnx_is_well_formed_and_leaves_only_the_number_of_images_open(exported):
    model = onnx.load(exported[0] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = [
        (value.name, [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [("images", ["N", 3, 32, 32]), ("logits", ["N", 10])]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]


def test_the_run_is_left_as_it_was(exported, here):
    before = everything_in(here)
    assert run_here("export", "--save=run", "--format=torch", "--output=new.pt2") == 0
    after = everything_in(here)
    assert after.pop("new.pt2") != b""
    assert after == before
    assert run_here("--save=run", "--resume") == 0  # the run that is finished


def test_the_strategy_of_a_run_does_not_matter(here):
    config = here / "run/config.json"
    config.write_text(config.read_text().replace('"efficient": true', '"efficient": "checkpoint"'))
    assert '"checkpoint"' in config.read_text()
    network = demo._network_of(read_saved_run(here / "run", command=demo.train))
    weights = load_tensors(here / "run/model.pt")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_formats_packages_and_exporters_are_of_the_same_names():
    assert SUFFIXES.keys() == PACKAGES.keys() == EXPORTERS.keys() == FILES.keys()


def lacking(name):
    return lambda here: (here / "run" / name).unlink()


def put(name, content):
    def prepare(here):
        (here / name).unlink(missing_ok=True)
        (here / name).write_bytes(content)

    return prepare


def folder_at(name):
    return lambda here: (here / name).mkdir()


def recorded(**flags):
    """A preparation: other flags in config.json."""

    def prepare(here):
        path = here / "run/config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"flags": config["flags"] | flags}))

    return prepare


def with_classes(*classes):
    def prepare(here):
        path = here / "run/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": classes}))

    return prepare


def weights_with(change):
    """A preparation: other weights in model.pt, as a whole file."""

    def prepare(here):
        path = here / "run/model.pt"
        weights = load_tensors(path)
        change(weights)
        save_tensors(path, weights)

    return prepare


def complex_bias(weights):
    weights["classifier.bias"] = weights["classifier.bias"] * 1j


OTHER = "model.pt is of another network than its config.json says"
REFUSED = {
    "no folder": (lambda here: shutil.rmtree(here / "run"), [], "--save run does not exist"),
    "a file": (put("run/other", b""), ["--save=run/other"], "--save is 'run/other', but must be a folder, not a file"),
    "not a run": (folder_at("empty"), ["--save=empty"], "--save empty holds no run: it has no config.json"),
    "no config": (lacking("config.json"), [], "--save run holds no run: it has no config.json"),
    "no weights": (lacking("model.pt"), [], "run/model.pt cannot be read: No such file"),
    "damaged config": (put("run/config.json", b"{"), [], "run/config.json cannot be read: "),
    "other classes": (with_classes(), [], "run/config.json cannot be used: classes is [], but must be"),
    "damaged weights": (put("run/model.pt", b"mine"), [], "run/model.pt is damaged, or is no file of tensors"),
    "deeper network": (recorded(depth=16), [], OTHER),
    "wider network": (recorded(growth_rate=3), [], OTHER),
    "enormous network": (recorded(depth=1000, growth_rate=10_000), [], OTHER),
    "more classes": (with_classes("a", "b"), [], OTHER),
    "less weights": (weights_with(lambda weights: weights.popitem()), [], OTHER),
    "more weights": (
        weights_with(lambda weights: weights.update(more=1)),
        [],
        "run/model.pt cannot be used: the weights",
    ),
    "no tensors": (weights_with(lambda weights: weights.update({"classifier.bias": "b"})), [], OTHER),
    "complex weights": (weights_with(complex_bias), [], "run/model.pt cannot be used: the weights do not fit"),
    "default output exists": (put("run/model.pt2", b"mine"), [], "--output run/model.pt2 exists already"),
    "output exists": (put("mine.pt2", b"mine"), ["--output=mine.pt2"], "--output mine.pt2 exists already"),
    "output is a folder": (folder_at("new.pt2"), ["--output=new.pt2"], "--output new.pt2 exists already"),
    "output in no folder": (None, ["--output=nowhere/new.pt2"], "--output nowhere/new.pt2 cannot be written: No such"),
    "output of another ending": (None, ["--output=new.onnx"], "--output is 'new.onnx', but must be a file name that"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line_and_changes_nothing(case, here, capsys):
    prepare, words, message = REFUSED[case]
    if prepare:
        prepare(here)
    before = everything_in(here)
    words = words if any(word.startswith("--save") for word in words) else ["--save=run", *words]
    assert run_here("export", "--format=torch", *words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("demo.py export: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert everything_in(here) == before


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnxruntime"], ["onnx", "onnxscript", "onnxruntime"]])
def test_missing_packages_are_named_before_any_work(missing, here, monkeypatch, capsys):
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    before = everything_in(here)
    assert run_here("export", "--save=run", "--format=onnx") == 2
    message = f"--format is onnx, but packages are missing: pip install {' '.join(missing)}"
    assert capsys.readouterr().err == f"demo.py export: error: {message}\n"
    assert everything_in(here) == before


def test_torch_export_needs_no_further_package(here, monkeypatch):
    for package in PACKAGES["onnx"]:
        monkeypatch.setitem(sys.modules, package, None)
    assert run_here("export", "--save=run", "--format=torch") == 0


def exporting(monkeypatch, **others):
    """Let other functions do the work of an exporter; those of torch.export do the rest."""
    monkeypatch.setitem(EXPORTERS, "torch", replace(EXPORTERS["torch"], **others))


def wrong_by(change):
    """Read a file back as a function with other results."""
    return lambda content: lambda pixels: change(EXPORTERS["onnx"].read(content)(pixels))


def fail(*_):
    raise RuntimeError("first line\nsecond line") from OSError("the reason\nand advice")


def chatter_and_fail(*_):
    chatter()
    fail()


def chatter():
    print("chatter")
    print("chatter", file=sys.stderr)
    os.write(1, b"chatter")
    os.write(2, b"chatter")
    logging.getLogger("exporter").error("chatter")
    warnings.warn("chatter", stacklevel=1)


@pytest.fixture
def onnx_content(exported):
    return (exported[0] / "model.onnx").read_bytes()


FAILING = {
    "a little": (
        lambda logits: logits + 3e-5 * logits.abs().max(),
        "differ from the network's own by 3.0e-05 of the larg",
    ),
    "not a number": (lambda logits: logits * float("nan"), "differ from the network's own by nan of the largest"),
    "in one batch": (lambda logits: logits * (len(logits) != 3), "differ from the network's own by 1.0e+00"),
    "in shape": (
        lambda logits: logits[:, :9],
        "cannot be read back, and run/model.pt2 is not written: ValueError: logits",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_file_that_computes_something_else_is_not_left(case, here, onnx_content, monkeypatch, capsys):
    change, message = FAILING[case]
    exporting(monkeypatch, write=lambda *_: onnx_content, read=wrong_by(change))
    refused_with_exit_code_1(here, message, capsys)


def test_the_tolerance_admits_rounding(here, onnx_content, monkeypatch):
    exporting(monkeypatch, write=lambda *_: onnx_content, read=EXPORTERS["onnx"].read)
    assert run_here("export", "--save=run", "--format=torch") == 0
    assert (here / "run/model.pt2").read_bytes() == onnx_content


@pytest.mark.parametrize("part", ["write", "read"])
def test_an_exporter_that_fails_is_one_line_without_its_chatter(part, here, onnx_content, monkeypatch, capfd):
    parts = {"write": lambda *_: onnx_content} | {part: chatter_and_fail}
    exporting(monkeypatch, **parts)
    message = {"write": "--format torch failed, and", "read": "what was exported cannot be read back, and"}[part]
    refused_with_exit_code_1(here, f"{message} run/model.pt2 is not written: OSError: the reason\n", capfd)


def refused_with_exit_code_1(here, message, capture):
    before = everything_in(here)
    assert run_here("export", "--save=run", "--format=torch") == 1
    out, error = capture.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("demo.py export: error: ")
    assert message in error
    assert everything_in(here) == before


def test_chatter_of_an_exporter_is_dropped(here, onnx_content, monkeypatch, capfd):
    def write(*_):
        chatter()
        return onnx_content

    exporting(monkeypatch, write=write, read=EXPORTERS["onnx"].read)
    assert run_here("export", "--save=run", "--format=torch") == 0
    out, error = capfd.readouterr()
    assert (len(out.splitlines()), error) == (2, "")
    assert "chatter" not in out


def test_a_file_that_came_into_being_meanwhile_stays(here, onnx_content, monkeypatch, capsys):
    def write(*_):
        (here / "run/model.pt2").write_text("mine")
        return onnx_content

    exporting(monkeypatch, write=write, read=EXPORTERS["onnx"].read)
    assert run_here("export", "--save=run", "--format=torch") == 1
    assert "run/model.pt2 has come into being meanwhile" in capsys.readouterr().err
    assert (here / "run/model.pt2").read_text() == "mine"
    assert not [path for path in (here / "run").iterdir() if path.name.endswith(".tmp")]


def test_equal_zeros_do_not_differ():
    silent = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    for parameter in silent.parameters():
        torch.nn.init.zeros_(parameter)
    on_pixels = export.OnPixels(silent, (0.5,) * 3, (0.5,) * 3)
    assert export._largest_difference(on_pixels, on_pixels, 32) == 0
