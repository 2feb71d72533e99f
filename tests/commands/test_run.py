"""The files of a run: reproducible weights, those of the best epoch, and the description of the run."""

import json

import torch

from commands.settings import TrainSettings
from models import DenseNet, densenet_bc
from tests.support.application import LONGER, SMALL, assert_same_run, read_results, run_here
from train import engine


def test_two_runs_with_one_seed_give_the_same_bits_and_another_seed_others(long_run, tmp_path):
    assert run_here(*LONGER, f"--save={tmp_path / 'same'}") == 0
    assert_same_run(tmp_path / "same", long_run)
    others = [word for word in LONGER if not word.startswith("--seed")]
    assert run_here(*others, "--seed=4", f"--save={tmp_path / 'other'}") == 0
    assert (tmp_path / "other" / "model.pt").read_bytes() != (long_run / "model.pt").read_bytes()


def test_a_run_without_seed_can_be_repeated_from_its_config(tmp_path):
    others = [word for word in SMALL if not word.startswith("--seed")]
    assert run_here(*others, "--n_epochs=1", f"--save={tmp_path / 'drawn'}") == 0
    seed = json.loads((tmp_path / "drawn" / "config.json").read_text())["flags"]["seed"]
    assert run_here(*others, "--n_epochs=1", f"--seed={seed}", f"--save={tmp_path / 'again'}") == 0
    assert_same_run(tmp_path / "again", tmp_path / "drawn")


def test_a_loss_that_is_no_number_stops_the_run_before_anything_is_saved(tmp_path, capsys):
    assert run_here(*SMALL, "--n_epochs=2", "--lr=1e30", f"--save={tmp_path}") == 1
    error = capsys.readouterr().err
    assert "the training loss became NaN or infinite in epoch 1, batch " in error
    assert "learning rate 1e+30" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_saved_weights_are_plain_and_reproduce_the_test_error(long_run):
    weights = torch.load(long_run / "model.pt", weights_only=True)
    assert type(weights) is dict
    network = densenet_bc(10, 2).eval()
    network.load_state_dict(weights)
    DenseNet(growth_rate=2, block_config=(1, 1, 1), num_init_features=4).load_state_dict(weights)

    from data.datasets import DATASETS, load
    from data.loader import Loader

    spec = DATASETS["digits"]
    test = Loader(load("digits", folder=None, download=False).test, batch_size=128, mean=spec.mean, std=spec.std)
    with torch.no_grad():
        wrong = sum((network(images).argmax(1) != labels).sum().item() for images, labels, _ in test)
    assert float(read_results(long_run)[-1]["test_error"]) == wrong / 355


def test_config_says_what_the_run_is(long_run):
    config = json.loads((long_run / "config.json").read_text())
    assert [*config["flags"]] == [name for name in TrainSettings.flags() if name != "config"]  # which stands for others
    assert config["flags"]["valid_size"] == 140
    assert config["classes"] == list("0123456789")
    assert config["parameters"] == sum(parameter.numel() for parameter in densenet_bc(10, 2).parameters())
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(config["mean"]) == len(config["std"]) == 3
    assert "CPU" in config["device"] or "x" in config["device"]


def test_without_validation_images_the_last_epoch_is_kept(tmp_path):
    assert run_here(*SMALL, "--n_epochs=3", "--valid_size=0", f"--save={tmp_path}") == 0
    rows = read_results(tmp_path)
    assert all(row["valid_loss"] == row["valid_error"] == "" for row in rows)
    assert rows[-1]["test_error"] != ""
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    chosen = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(last[name], value) for name, value in chosen.items())


def test_the_best_validation_error_is_kept_even_if_a_later_epoch_is_worse(tmp_path, monkeypatch):
    real = engine.evaluate
    errors = iter([0.5, 0.3, 0.4, 0.9])
    seen = []

    def evaluate(model, *arguments):
        metrics = real(model, *arguments)
        error = next(errors)
        seen.append({name: value.clone() for name, value in model.network.state_dict().items()})
        return type(metrics)(metrics.loss, error)

    monkeypatch.setattr(engine, "evaluate", evaluate)
    assert run_here(*SMALL, "--n_epochs=3", f"--save={tmp_path}") == 0
    chosen = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in chosen.items():
        assert torch.equal(value, seen[1][name])
        assert torch.equal(value, seen[3][name])  # what was measured on the test images
    assert not torch.equal(seen[2]["classifier.weight"], chosen["classifier.weight"])
    assert read_results(tmp_path)[-1]["test_error"] == "0.9"
