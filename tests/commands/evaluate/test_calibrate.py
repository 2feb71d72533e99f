"""`evaluate --calibrate`, `--json` and `--predictions`, and what predict and export make of the temperature."""

import csv
import errno
import json
import math
import os
import shutil
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import Image

from commands.calibration import digest, read_calibration
from commands.evaluate import calibrate, evaluation
from commands.saved_run import read_saved_run
from data.datasets import load
from tests.support.application import assert_refused, everything_in, read_results, run_here
from tests.support.run_preparations import changed, placed
from train.errors import RunError, UserError
from train.run.acquire import locked
from train.run.files import load_tensors, serialize
from train.run.open_folder import OpenFolder

EVALUATE = ["evaluate", "--save=run"]
CALIBRATE = [*EVALUATE, "--calibrate"]


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots take most of the time of an evaluation, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "draw_report", lambda report, title: b"plot")
        yield


@pytest.fixture(scope="module")
def surer(finished, tmp_path_factory):
    """The run with a classifier that is ten times as sure, so that it needs a temperature."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("surer") / "run")
    weights = load_tensors(run / "model.pt")
    weights["classifier.weight"] *= 10
    weights["classifier.bias"] *= 10
    (run / "model.pt").write_bytes(serialize(weights))
    return run


@pytest.fixture(scope="module")
def calibration(surer):
    """A folder with a calibrated run in `run`, and the logits of its test images in all.npz."""
    here = shutil.copytree(surer.parent, surer.parent.with_name("calibration"))
    assert run_here("evaluate", f"--save={here / 'run'}", "--calibrate", f"--predictions={here / 'all.npz'}") == 0
    return here


@pytest.fixture
def calibrated(calibration, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(calibration, tmp_path / "here"))
    return tmp_path / "here"


def write_images(here, number):
    """Write the first test images as files, and return their paths."""
    paths = [here / f"{i}.png" for i in range(number)]
    for path, pixels in zip(paths, load("digits", folder=None, download=False).test.images, strict=False):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return map(str, paths)


def test_it_fits_the_validation_images_of_the_run_and_says_what_changes(surer, tmp_path, capsys, monkeypatch):
    shutil.copytree(surer, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    fitted_on = []
    fit = calibrate.fit_temperature
    monkeypatch.setattr(calibrate, "fit_temperature", lambda *both: fitted_on.append(both) or fit(*both))
    before = everything_in(tmp_path)
    assert run_here(*CALIBRATE, "--json=all.json") == 0
    out, error = capsys.readouterr()
    assert error == ""
    after = everything_in(tmp_path)
    assert after.keys() - before.keys() == {"run/calibration.json", "run/confusion.png", "all.json"}
    assert {name: after[name] for name in before} == before
    content = json.loads((tmp_path / "run/calibration.json").read_text())
    assert list(content) == ["format", "temperature", "weights", "validation_images"]
    temperature = content["temperature"]
    assert content["validation_images"] == 140
    assert out.splitlines()[-1] == (
        f"Temperature {temperature:.4g}, fitted on 140 validation images, is in run/calibration.json; "
        "predict and export use it."
    )
    assert f"\nat temperature {temperature:.4g} " in out
    # The loss that the run recorded says which images they are.
    ((logits, labels),) = fitted_on
    best = min(read_results(tmp_path / "run"), key=lambda row: (float(row["valid_error"]), float(row["valid_loss"])))
    loss = torch.nn.functional.cross_entropy(logits.double() / 10, labels).item()
    assert loss == pytest.approx(float(best["valid_loss"]), rel=1e-5)
    of_all = json.loads((tmp_path / "all.json").read_text())
    assert of_all["calibrated"]["temperature"] == temperature
    assert of_all["calibrated"]["negative_log_likelihood"] < of_all["negative_log_likelihood"]
    assert run_here(*CALIBRATE) == 0  # an earlier one is replaced
    assert everything_in(tmp_path) == after


def test_a_later_evaluation_reports_on_it_and_leaves_it(calibrated, capsys):
    before = (calibrated / "run/calibration.json").read_bytes()
    capsys.readouterr()
    assert run_here(*EVALUATE) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert "\nat temperature " in out
    assert (calibrated / "run/calibration.json").read_bytes() == before


def test_predict_gives_the_probabilities_at_the_temperature_and_says_so(calibrated, capsys):
    temperature = read_calibration(calibrated / "run").temperature
    capsys.readouterr()
    assert run_here("predict", *write_images(calibrated, 3), "--save=run", "--top=10", "--csv=p.csv") == 0
    line = f"note: probabilities are those at temperature {temperature:.4g}, from run/calibration.json\n"
    assert capsys.readouterr().err == line
    logits = np.load("all.npz")["logits"][:3].astype(np.float64)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    for row, probabilities in zip(rows, expected, strict=True):
        found = {row[f"class{end}"]: float(row[f"probability{end}"]) for end in ("", "_2", "_10")}
        assert found == pytest.approx({name: probabilities[int(name)] for name in found}, rel=1e-4)


def test_export_divides_the_logits_and_says_so(calibrated, capsys):
    temperature = read_calibration(calibrated / "run").temperature
    capsys.readouterr()
    assert run_here("export", "--save=run", "--format=torch") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"logits are divided by temperature {temperature:.4g}, from run/calibration.json"
    texts = {"temperature": ""}
    network = torch.export.load("run/model.pt2", extra_files=texts).module()
    assert json.loads(texts["temperature"]) == temperature
    pixels = load("digits", folder=None, download=False).test.images[:5] / 255
    expected = np.load("all.npz")["logits"][:5] / temperature
    np.testing.assert_allclose(network(pixels).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_other_weights_do_not_get_the_temperature(calibrated, capsys):
    weights = load_tensors(calibrated / "run/model.pt")
    weights["classifier.bias"][3] += 1e-3
    (calibrated / "run/model.pt").write_bytes(serialize(weights))
    note = (
        "note: the temperature in run/calibration.json is not used: the run has other weights by now; "
        "evaluate --calibrate True fits it again\n"
    )
    capsys.readouterr()
    for words in (EVALUATE, ["predict", *write_images(calibrated, 1), "--save=run"]):
        assert run_here(*words) == 0
        out, error = capsys.readouterr()
        assert error == note
        assert "at temperature" not in out


def test_the_digest_is_of_names_shapes_types_and_bits():
    weights = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3).int(), "b": torch.tensor(1)},
        {"a": -torch.zeros(2, 3), "b": torch.tensor(1)},
        {"c": torch.zeros(2, 3), "b": torch.tensor(1)},
    ]
    assert len({digest(one) for one in [weights, *others]}) == 5
    turned = {"b": torch.tensor(1), "a": torch.zeros(3, 2).T}
    assert digest(turned) == digest(weights)


REFUSED = {
    "no validation images": (changed(flags={"valid_size": 0}), "the run in run held out none: it had --valid_size 0"),
    "other images": (changed(images={"train": 99, "valid": 1, "test": 1}), "the run in run began with 100 images"),
    "no seed": (changed(flags={"seed": None}), "config.json names no seed, without which its validation images"),
    "a file of somebody else": (placed("run/calibration.json", b'{"temperature": 2}'), "give it another name"),
    "no JSON": (placed("run/calibration.json", b"[" * 100_000), "give it another name"),
    "a lock that cannot be written": (placed("run/.lock", "folder"), "cannot write run/calibration.json: Is a dir"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_calibrated_is_refused(case, here, capsys):
    prepare, message = REFUSED[case]
    prepare(here)
    assert_refused(*CALIBRATE, message=message, folder=here, capture=capsys)


def test_a_run_that_goes_on_is_refused(here, capsys):
    with locked(here / "run"):
        assert_refused(*CALIBRATE, message="--save run is in use by process", folder=here, capture=capsys)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_refused(number, here, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(OpenFolder, "open_file", refuse)
    message = f"--calibrate True cannot write run/calibration.json: {os.strerror(number)}"
    assert_refused(*CALIBRATE, message=message, folder=here, capture=capsys)


@pytest.mark.parametrize("temperature", ["0", "-1.5", "NaN", "Infinity", '"2"', "null", "1" + "0" * 400])
def test_a_temperature_that_is_none_is_refused(temperature, tmp_path):
    text = f'{{"format": 1, "temperature": {temperature}, "weights": "", "validation_images": 1}}'
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(UserError, match="is no calibration by this version of this program"):
        read_calibration(tmp_path)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.eye(3), torch.arange(3), "no temperature fits the 3 validation images: the lower it is, the better"),
        (torch.eye(2), torch.tensor([1, 0]), "no temperature fits the 2 validation images: the higher it is"),
        (torch.tensor([[math.nan, 0]]), torch.tensor([0]), "logits of validation images are NaN or infinite"),
    ],
)
def test_where_no_temperature_fits_it_is_an_error(logits, labels, message):
    with pytest.raises(RunError, match=message):
        calibrate.fit_calibration(logits, labels, weights="")


def test_json_on_stdout_is_all_there_is_on_stdout_and_equals_the_file(here, capsys):
    assert run_here(*EVALUATE, "--json=-") == 0
    out, error = capsys.readouterr()
    content = json.loads(out)
    assert "Confusion matrix and reliability diagram are in run/confusion.png" in error
    assert run_here(*EVALUATE, "--json=all.json") == 0
    in_file = json.loads((here / "all.json").read_text())
    assert abs(datetime.fromisoformat(in_file.pop("date")) - datetime.fromisoformat(content.pop("date"))).seconds < 60
    assert in_file == content
    assert capsys.readouterr().out == error
    row = read_results(here / "run")[-1]
    assert (content["format"], content["split"], content["images"]) == (1, "test", 355)
    assert content["error"] == content["recorded_error"] == float(row["test_error"])
    assert (content["temperature"], content["calibrated"]) == (1, None)
    matrix = np.array(content["confusion"])
    assert 1 - np.trace(matrix) / 355 == pytest.approx(content["error"])
    assert [row["images"] for row in content["classes"]] == matrix.sum(1).tolist()
    assert sum(one["images"] for one in content["bins"]) == 355
    gaps = [one["images"] * abs(one["confidence"] - one["accuracy"]) for one in content["bins"] if one["images"]]
    assert content["calibration_error"] == pytest.approx(sum(gaps) / 355)
    assert content["origin"] == read_saved_run(here / "run").origin()
    assert {"torch", "numpy"} <= content["versions"].keys()


def test_the_predictions_reproduce_error_and_loss(here, capsys):
    assert run_here(*EVALUATE, "--json=all.json", "--predictions=all.npz") == 0
    content = json.loads((here / "all.json").read_text())
    with np.load("all.npz", allow_pickle=False) as answers:
        logits, labels = answers["logits"], answers["labels"]
        assert answers["classes"].tolist() == [*"0123456789"]
        assert answers["paths"].tolist() == []
    assert (logits.shape, logits.dtype, labels.dtype) == ((355, 10), np.float32, np.int64)
    assert labels.tolist() == load("digits", folder=None, download=False).test.labels.tolist()
    assert (logits.argmax(1) != labels).mean() == pytest.approx(content["error"])
    exact = logits.astype(np.float64)
    losses = np.log(np.exp(exact).sum(1)) - exact[np.arange(355), labels]
    assert losses.mean() == pytest.approx(content["negative_log_likelihood"], rel=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json=t.txt"], "--json is 't.txt', but must be a file name that ends in .json"),
        (["--json=run/results.json"], "--json run/results.json exists already"),
        (["--predictions=a.csv"], "--predictions is 'a.csv', but must be a file name that ends in .npz"),
        (["--predictions=no/a.npz"], "--predictions no/a.npz cannot be written"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_any_work(words, message, here, capsys):
    assert_refused(*EVALUATE, *words, message=message, folder=here, capture=capsys)
