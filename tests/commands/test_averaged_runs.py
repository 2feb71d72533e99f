"""Runs that keep an average of their weights (--ema): what is saved, said and recorded."""

from dataclasses import replace

import pytest
import torch

from data.datasets import DATASETS, load
from data.loader import make_loaders
from models import densenet_bc
from tests.support.application import EPOCHS, LONGER, SMALL, read_results, run_here
from tests.support.synthetic_runs import make_record, make_rows
from train.engine import evaluate
from train.progress import epoch_line
from train.run.history import best_row
from train.signals import GracefulStop
from train.terminal import Bar


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """The run `long_run`, with an average of its weights."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    assert run_here(*LONGER, "--ema=0.9", f"--save={folder}") == 0
    return folder


def weights_in(path):
    return torch.load(path, weights_only=True)


def with_average(of_network, average):
    """The average of the weights, with the counters of the network."""
    return of_network | {name: value for name, value in average.items() if name != "steps"}


def validated(weights):
    """Error and loss of weights on the validation images of the run."""
    network = densenet_bc(10, 2)
    network.load_state_dict(weights)
    source = load("digits", folder=None, download=False)
    split = {"batch_size": 128, "valid_size": None, "augment": False, "seed": 3}
    _, valid, _ = make_loaders(source, DATASETS["digits"], torch.device("cpu"), **split)
    metrics = evaluate(network, valid, Bar("validation", valid.num_images), GracefulStop())
    return metrics.error, pytest.approx(metrics.loss, rel=1e-5)


def test_the_saved_weights_are_the_best_of_both_kinds_in_all_epochs(averaged):
    columns = [("valid_error", "valid_loss"), ("ema_valid_error", "ema_valid_loss")]
    best = min(tuple(float(row[name]) for name in names) for row in read_results(averaged) for names in columns)
    assert validated(weights_in(averaged / "model.pt")) == best


def test_both_weights_are_validated_and_the_network_goes_on_with_its_own(averaged):
    checkpoint, row = weights_in(averaged / "checkpoint.pt"), read_results(averaged)[-1]
    of_network, average = checkpoint["network"], checkpoint["ema"]
    assert validated(of_network) == (float(row["valid_error"]), float(row["valid_loss"]))
    of_average = float(row["ema_valid_error"]), float(row["ema_valid_loss"])
    assert validated(with_average(of_network, average)) == of_average
    assert average["steps"] == EPOCHS * 11  # batches of 128 of 1,302 images


def test_an_average_leaves_training_as_it_is_and_a_run_without_one_has_no_columns_for_it(averaged, long_run):
    rows = [
        [{name: value for name, value in row.items() if name[:3] != "ema" and name != "test_error"} for row in run]
        for run in (read_results(averaged, timing=False), read_results(long_run, timing=False))
    ]
    assert rows[0] == rows[1]
    assert not any(name.startswith("ema") for name in read_results(long_run)[0])


def test_without_validation_images_the_average_of_the_last_epoch_is_saved(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*SMALL, "--limit_batches=2", "--n_epochs=2", "--ema=0.9", "--valid_size=0"]
    assert run_here(*words, f"--save={folder}") == 0
    checkpoint = weights_in(folder / "checkpoint.pt")
    expected = with_average(checkpoint["network"], checkpoint["ema"])
    saved = weights_in(folder / "model.pt")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in saved.items())
    assert "ema_valid_loss" not in read_results(folder)[0]
    capsys.readouterr()
    assert run_here("evaluate", f"--save={folder}") == 0
    assert ", averaged weights of epoch 2, 2 of 2 epochs done\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        (make_rows(3, ema=True), {"ema": 0.9}, "averaged weights of epoch 3,"),
        (make_rows(3), {"ema": 0.0}, "weights of epoch 3,"),
        (make_rows(3), {}, "weights of epoch 3,"),
        (make_rows(3, valid=False), {"ema": 0.9}, "averaged weights of epoch 3,"),
        (make_rows(3, valid=False), {}, "weights of epoch 3,"),
    ],
)
def test_a_record_says_whether_its_weights_are_averaged(rows, flags, said):
    assert make_record("run", rows, **flags).progress().startswith(said)


def with_scores(**values):
    (row,) = make_rows(1)
    scores = {"valid_loss": 0.5, "valid_error": 0.25, "ema_valid_loss": 0.4, "ema_valid_error": 0.25}
    return replace(row, **scores | values)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (with_scores(), "valid loss 0.5000 error  25.00%    EMA loss 0.4000 error  25.00% *  lr 0.1"),
        (with_scores(valid_error=0.2), "valid loss 0.5000 error  20.00% *  EMA loss 0.4000 error  25.00%    lr 0.1"),
    ],
)
def test_a_star_is_at_the_weights_that_are_chosen(row, line):
    assert best_row([row]) is row
    assert line in epoch_line(row, n_epochs=1, is_chosen=True)
    assert "*" not in epoch_line(row, n_epochs=1, is_chosen=False)
