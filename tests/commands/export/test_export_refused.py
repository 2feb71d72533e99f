"""Exports that are refused: one line each, and nothing is written."""

import shutil
import sys

import pytest
import torch

from commands.export.formats import FORMATS
from tests.support.application import assert_refused, everything_in, run_here
from tests.support.run_preparations import changed, nothing, placed, recorded, without
from train.run.files import load_tensors, serialize


def weights_with(change):
    """A preparation: other weights in model.pt, which stays an intact file."""

    def prepare(here):
        path = here / "run/model.pt"
        weights = load_tensors(path)
        change(weights)
        path.write_bytes(serialize(weights))

    return prepare


def complex_bias(weights):
    weights["classifier.bias"] = weights["classifier.bias"] * 1j


OTHER = "model.pt is of another network than its config.json says"
REFUSED = {
    "no folder": (lambda here: shutil.rmtree(here / "run"), [], "--save run does not exist"),
    "a file": (
        placed("run/other", b""),
        ["--save=run/other"],
        "--save is 'run/other', but must be a folder, not a file",
    ),
    "not a run": (placed("empty", "folder"), ["--save=empty"], "--save empty holds no run: it has no config.json"),
    "no config": (without("config.json"), [], "--save run holds no run: it has no config.json"),
    "no weights": (without("model.pt"), [], "run/model.pt cannot be read: No such file"),
    "damaged config": (placed("run/config.json", b"{"), [], "run/config.json cannot be read: "),
    "other classes": (changed(classes=[]), [], "run/config.json cannot be used: classes is [], but must be"),
    "damaged weights": (placed("run/model.pt", b"mine"), [], "run/model.pt is damaged, or is no file of tensors"),
    "deeper network": (recorded(depth=16), [], OTHER),
    "wider network": (recorded(growth_rate=3), [], OTHER),
    "enormous network": (recorded(depth=1000, growth_rate=10_000), [], OTHER),
    "more classes": (changed(classes=["a", "b"]), [], OTHER),
    "less weights": (weights_with(lambda weights: weights.popitem()), [], OTHER),
    "more weights": (
        weights_with(lambda weights: weights.update(more=torch.ones(1))),
        [],
        f"{OTHER}: the weights do not fit the network; unexpected: 'more'",
    ),
    "no tensors": (weights_with(lambda weights: weights.update({"classifier.bias": "b"})), [], OTHER),
    "complex weights": (weights_with(complex_bias), [], "unfit: classifier.bias is a tensor of torch.complex64"),
    "default output exists": (placed("run/model.pt2", b"mine"), [], "--output run/model.pt2 exists already"),
    "output exists": (placed("mine.pt2", b"mine"), ["--output=mine.pt2"], "--output mine.pt2 exists already"),
    "output is a folder": (placed("new.pt2", "folder"), ["--output=new.pt2"], "--output new.pt2 exists already"),
    "output in no folder": (
        nothing,
        ["--output=nowhere/new.pt2"],
        "--output nowhere/new.pt2 cannot be written: No such",
    ),
    "output of another ending": (
        nothing,
        ["--output=new.onnx"],
        "--output is 'new.onnx', but must be a file name that",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line_and_changes_nothing(case, here, capsys):
    prepare, words, message = REFUSED[case]
    prepare(here)
    words = words if any(word.startswith("--save") for word in words) else ["--save=run", *words]
    assert_refused("export", "--format=torch", *words, message=message, folder=here, capture=capsys)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnxruntime"], ["onnx", "onnxscript", "onnxruntime"]])
def test_missing_packages_are_named_before_any_work(missing, here, monkeypatch, capsys):
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    before = everything_in(here)
    assert run_here("export", "--save=run", "--format=onnx") == 2
    which = f"the packages {', '.join(missing)} are" if len(missing) > 1 else f"the package {missing[0]} is"
    message = f"--format is onnx, but {which} missing: pip install {' '.join(missing)}"
    assert capsys.readouterr().err == f"demo.py export: error: {message}\n"
    assert everything_in(here) == before


def test_torch_export_needs_no_further_package(here, monkeypatch):
    for package in FORMATS["onnx"].packages:
        monkeypatch.setitem(sys.modules, package, None)
    assert run_here("export", "--save=run", "--format=torch") == 0
