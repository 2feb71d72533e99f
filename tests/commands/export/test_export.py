"""Exported files give the logits of the trained network without this code, and say where they come from."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from commands.export.exporters import EXPORTERS
from commands.export.formats import FORMATS
from commands.saved_run import read_saved_run
from data.augment import normalise
from data.datasets import DATASETS, load
from data.images import describe_preparation
from data.splits import Split
from models import densenet_bc
from tests.support.application import ROOT, everything_in, run_here
from train.run.files import load_tensors

FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
BATCHES = (1, 2, 7)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run and its network in both formats, with what each command printed."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("exported") / "run")
    printed = {}
    for name in FILES:
        with redirect_stdout(io.StringIO()) as out:
            assert run_here("export", f"--save={folder}", f"--format={name}") == 0
        printed[name] = out.getvalue()
    return folder, printed


@pytest.fixture(scope="module")
def batches(exported) -> dict[int, tuple[Tensor, Tensor]]:
    """Pixels from 0 to 1 of test images, and the network's own logits for them, normalised as in training."""
    network = densenet_bc(10, 2)
    network.load_state_dict(load_tensors(exported[0] / "model.pt"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATASETS["digits"].mean, DATASETS["digits"].std))
    test = load("digits", folder=None, download=False).test
    assert isinstance(test, Split)
    images = test.images
    with torch.no_grad():
        logits = network.eval()(normalise(images, mean, std))
    return {n: (images[-n:] / 255, logits[-n:]) for n in BATCHES}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


# Programs for a process of their own: they read pixels and write logits.
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
for name in ("models", "data", "train", "commands", "demo"):
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
def test_two_lines_describe_the_file(name, exported):
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
    texts = dict.fromkeys(("classes", "mean", "std", "image_size", "preprocessing", "temperature", "origin"), "")
    torch.export.load(folder / FILES[name], extra_files=texts)
    return texts


@pytest.mark.parametrize("name", FILES)
def test_classes_normalisation_and_origin_are_in_the_file(name, exported):
    folder, _ = exported
    metadata = {key: json.loads(text) for key, text in metadata_of(folder, name).items()}
    origin = metadata.pop("origin")
    assert metadata.pop("preprocessing") == describe_preparation(image_size=32, grey=True)
    assert metadata.pop("temperature") == 1
    assert metadata == {"classes": [*"0123456789"], "mean": [0.30511] * 3, "std": [0.32382] * 3, "image_size": 32}
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


def test_the_run_is_left_as_it_was(here):
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
    network = read_saved_run(here / "run").network()
    weights = load_tensors(here / "run/model.pt")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_each_format_has_an_exporter():
    assert FORMATS.keys() == EXPORTERS.keys() == {*FILES, "safetensors"}
