"""Which settings make a run another one, and that checkpoints name the final ones."""

import pytest

from tests.support.synthetic_runs import make_rows
from tests.support.untrained_run import weights
from train.run.checkpoint import Checkpoint
from train.run.files import load_tensors
from train.run.identity import Difference, RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder

IDENTITY = RunIdentity(
    {"lr": 0.1, "seed": None, "n_epochs": 3, "first_weights": "/a/first.pt", "threads": 2},
    {"momentum": 0.9},
    free=frozenset({"threads"}),
    chosen=frozenset({"seed"}),
    growing=frozenset({"n_epochs"}),
    by_file_name=frozenset({"first_weights"}),
)


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"lr": 0.1},
        {"seed": 5},
        {"n_epochs": 2},
        {"first_weights": "/b/first.pt"},
        {"threads": 8},
        {"of a later version": 1},
    ],
    ids=str,
)
def test_a_run_agrees_with_what_its_settings_allow(recorded):
    assert IDENTITY.first_difference(recorded) is None


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("lr", 0.2),
        ("lr", None),
        ("n_epochs", 4),
        ("n_epochs", "3"),
        ("n_epochs", None),
        ("first_weights", "/a/other.pt"),
        ("first_weights", None),
    ],
)
def test_any_other_value_is_another_run(name, recorded):
    current = IDENTITY.settings[name]
    assert IDENTITY.first_difference({name: recorded}) == Difference(name, recorded, current)


def test_the_first_difference_is_the_first_in_the_order_of_the_settings():
    assert IDENTITY.first_difference({"n_epochs": 9, "lr": 9}) == Difference("lr", 9, 0.1)


def test_a_setting_that_was_not_recorded_had_its_default():
    with_momentum = IDENTITY.with_settings({**IDENTITY.settings, "momentum": 0.5})
    assert with_momentum.first_difference({}) == Difference("momentum", 0.9, 0.5)
    assert with_momentum.first_difference({"momentum": 0.5}) is None


def test_checkpoints_name_the_final_settings_that_decide_the_results(tmp_path):
    folder = RunFolder(tmp_path, OpenFolder(tmp_path), identity=IDENTITY)
    final = {**IDENTITY.settings, "seed": 7}
    folder.write_config({"flags": final})
    folder.save(Checkpoint(make_rows(1), network=weights(7, 1), chosen=weights(7, 1)))
    flags = load_tensors(tmp_path / "checkpoint.pt")["flags"]
    assert flags == {"lr": 0.1, "seed": 7, "n_epochs": 3, "first_weights": "/a/first.pt"}
    assert list(flags) == ["lr", "seed", "n_epochs", "first_weights"]
