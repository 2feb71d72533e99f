"""Weights as safetensors with a model card: they are those of the run, and the card says what is true of them."""

import hashlib
import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from safetensors import safe_open

import demo
from commands.export.card import HUB_NAMES
from commands.line.bind import choose
from commands.program import read_settings
from commands.saved_run import read_saved_run
from commands.settings import TrainSettings
from data.datasets import DATASETS
from data.digests import file_digests
from models import densenet_bc
from tests.support.application import ROOT, SMALL, assert_refused, everything_in, read_results, run_here
from tests.support.other_programs import small_veit
from tests.support.run_preparations import recorded, without
from train.errors import DamagedFile
from train.run.files import load_tensors
from train.run.legacy_weights import load_legacy_weights

EXPORT = ["export", "--format=safetensors"]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run with model.safetensors and README.md."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("exported") / "run")
    assert run_here(*EXPORT, f"--save={folder}") == 0
    return folder


def card_of(folder) -> str:
    return (folder / "README.md").read_text()


def front_matter(card: str) -> dict:
    """The block of YAML that a card begins with; its values are JSON."""
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    lines = [line.partition(": ") for line in block.splitlines() if not line.startswith("#")]
    return {name: json.loads(value) for name, _, value in lines}


def fenced(card: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def test_two_lines_describe_the_files(here, capsys):
    assert run_here(*EXPORT, "--save=run") == 0
    first, second = capsys.readouterr().out.splitlines()
    size = (here / "run/model.safetensors").stat().st_size
    assert first.startswith("run/model.safetensors: safetensors ")
    assert f", {size:,} bytes; largest relative difference to the network's own logits 0.0e+00" in first
    assert second == "The model card run/README.md says how to load it."


def test_the_file_holds_the_weights_of_the_run_and_what_they_need(exported):
    weights = load_tensors(exported / "model.pt")
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in weights.items())
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["classes"]) == [*"0123456789"]
    assert json.loads(metadata["mean"]) == list(DATASETS["digits"].mean)
    assert json.loads(metadata["origin"])["flags"]["seed"] == 3


def test_the_program_in_the_card_computes_the_logits_of_the_run(exported, monkeypatch):
    monkeypatch.chdir(exported)
    (program,) = fenced(card_of(exported), "python")
    names: dict = {}
    exec(program, names)
    network = densenet_bc(10, 2)
    network.load_state_dict(load_tensors(exported / "model.pt"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATASETS["digits"].mean, DATASETS["digits"].std))
    with torch.no_grad():
        expected = network.eval()((names["pixels"] - mean) / std)
    assert torch.equal(names["logits"], expected)


def test_the_command_lines_in_the_card_train_the_run_and_measure_it(exported, monkeypatch, capsys):
    use, train = fenced(card_of(exported), "")
    line = shlex.split(train.replace("<folder>", str(exported)))[2:]
    word, words = choose(demo.COMMANDS, line, name="demo.py")
    settings = read_settings(demo.COMMANDS[word], words, name="demo.py", commands=demo.COMMANDS)
    origin = read_saved_run(exported).origin()["flags"]
    assert isinstance(settings, TrainSettings)
    assert {name: getattr(settings, name) for name in origin} == origin

    monkeypatch.chdir(exported)
    evaluate, predict = use.splitlines()
    assert run_here(*shlex.split(evaluate)[2:]) == 0
    out, error = capsys.readouterr()
    assert f"test error {float(read_results(exported)[-1]['test_error']):.2%} " in out
    assert error == ""  # no warning: the file has a digest
    assert run_here(*shlex.split(predict.replace("<image>", "curves.png"))[2:]) == 0


def test_the_card_has_the_errors_of_the_run(exported):
    rows, card = read_results(exported), card_of(exported)
    test_error = float(rows[-1]["test_error"])
    best = min(rows, key=lambda row: (float(row["valid_error"]), float(row["valid_loss"])))
    assert f"| validation | {float(best['valid_error']):.2%} |\n| test | {test_error:.2%} |\n" in card
    assert f"One run with seed 3: weights of epoch {best['epoch']}, 2 of 2 epochs done." in card
    values = front_matter(card)
    assert values["tags"][:2] == ["image-classification", "densenet"]
    (entry,) = values["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "DenseNet-BC (L=10, k=2) on digits"
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(1 - test_error, abs=1e-6)


def test_the_card_has_the_data_the_flags_and_the_versions(exported):
    card, config = card_of(exported), json.loads((exported / "config.json").read_text())
    for name, number in config["images"].items():
        assert f"| {name} images | {number:,} |\n" in card
    for name in ("batch_size", "lr", "wd", "seed"):
        assert f"| {name} | {config['flags'][name]} |\n" in card
    for name, version in config["versions"].items():
        assert f"| {name} | {version} |\n" in card
    assert f"A DenseNet with {config['parameters']:,} parameters" in card
    assert config["git_revision"] is None or config["git_revision"] in card


def test_no_folder_of_this_machine_is_named(exported):
    for content in ((exported / "model.safetensors").read_bytes(), (exported / "README.md").read_bytes()):
        for folder in (ROOT, exported, sys.prefix):
            assert str(folder).encode() not in content


def test_a_run_begins_with_exported_weights(exported, tmp_path, capsys):
    path = exported / "model.safetensors"
    words = [*SMALL, "--n_epochs=1", "--limit_batches=1", f"--init_weights={path}", f"--save={tmp_path / 'run'}"]
    assert run_here(*words) == 0
    assert capsys.readouterr().out.startswith(f"Beginning with the weights in {path}\n")


@pytest.mark.parametrize("where", [30, 200, -400, -1])
def test_a_changed_byte_is_noticed(where, exported, tmp_path):
    content = bytearray((exported / "model.safetensors").read_bytes())
    content[where] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"w.safetensors is damaged"):
        load_legacy_weights(tmp_path / "w.safetensors")


def test_errors_that_mean_nothing_or_are_not_there_are_left_out(here):
    recorded(limit_batches=1)(here)
    assert run_here(*EXPORT, "--save=run") == 0
    assert "a dry run with --limit_batches, for which no error means anything" in card_of(here / "run")
    assert "model-index" not in front_matter(card_of(here / "run"))
    without("results.csv")(here)
    (here / "new").mkdir()
    assert run_here(*EXPORT, "--save=run", "--output=new/w.safetensors") == 0
    assert "## Results" not in card_of(here / "new")
    assert 'load_file("w.safetensors")' in card_of(here / "new")


def test_the_card_of_a_file_of_weights_says_what_is_known_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = small_veit(num_classes=100)
    torch.save(network.state_dict(), "theirs.pth")
    assert run_here(*EXPORT, "--weights=theirs.pth", "--dataset=cifar100") == 0
    card = card_of(tmp_path)
    digest = hashlib.sha256((tmp_path / "theirs.pth").read_bytes()).hexdigest()
    assert f"training is not known: theirs.pth, SHA-256 {digest}.\n" in card
    assert front_matter(card)["datasets"] == ["uoft-cs/cifar100"]
    assert "model-index" not in front_matter(card)
    assert "| md5 of cifar-100-python.tar.gz | eb9058c3a382ffc7106e4002c42a8d85 |\n" in card
    assert torch.equal(load_legacy_weights(tmp_path / "theirs.safetensors")["classifier.weight"], network.fc.weight)


def test_existing_files_are_refused_and_stay(here, capsys):
    (here / "run/README.md").write_text("mine")
    message = "the model card run/README.md exists already; choose another folder by --output"
    assert_refused(*EXPORT, "--save=run", message=message, folder=here, capture=capsys)
    (here / "run/README.md").rename(here / "run/model.safetensors")
    message = "--output run/model.safetensors exists already; choose another name"
    assert_refused(*EXPORT, "--save=run", message=message, folder=here, capture=capsys)


def test_without_the_package_both_ways_are_one_line(exported, here, monkeypatch, capsys):
    before = everything_in(here)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run_here(*EXPORT, "--save=run") == 2
    install = "missing: pip install safetensors\n"
    assert capsys.readouterr().err.endswith(f"--format is safetensors, but the package safetensors is {install}")
    assert run_here("evaluate", f"--weights={exported / 'model.safetensors'}", "--dataset=digits") == 2
    assert capsys.readouterr().err.endswith(f"is a safetensors file, and the package safetensors is {install}")
    assert everything_in(here) == before


def test_files_of_downloaded_data_sets_have_digests():
    assert file_digests("cifar10") == {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
    assert file_digests("svhn").keys() == {"train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"}
    assert file_digests("digits") == file_digests("folder") == {}
    assert HUB_NAMES.keys() < DATASETS.keys()
