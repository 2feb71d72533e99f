"""Several seeds one after the other: each run is that of its seed alone, and the whole can be stopped and resumed."""

import json
import math
import re
import shutil
import signal
import weakref

import numpy as np
import pytest

from commands.line.flags import Role
from commands.settings import TrainSettings
from commands.train import steps
from commands.train.complete import complete
from commands.train.seeds import named_seeds
from tests.support.application import SMALL, assert_refused, assert_same_run, read_results, run_here
from tests.support.synthetic_runs import make_rows, make_run
from tests.support.torchrun import lines_of_the_application, run_processes
from train import engine
from train.errors import RunError
from train.metrics import NonFiniteLoss
from train.run.run_folder import RunFolder
from train.step import Stepper

WORDS = [*(word for word in SMALL if not word.startswith("--seed")), "--n_epochs=2"]


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """Two runs that are done, below one folder. `finished` has the second of their seeds."""
    folder = tmp_path_factory.mktemp("seeds") / "runs"
    assert run_here(*WORDS, "--seeds=5,3", f"--save={folder}") == 0
    return folder


@pytest.fixture
def runs(two_seeds, tmp_path, monkeypatch):
    """The folder of a copy of them, named from the folder above it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(two_seeds, tmp_path / "runs")


def config_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return config | {"flags": {name: value for name, value in config["flags"].items() if name != "save"}}


def test_each_run_is_that_of_its_seed_alone(two_seeds, finished):
    """Also after another run in the same process."""
    assert sorted(path.name for path in two_seeds.iterdir()) == ["seed-3", "seed-5"]
    assert_same_run(two_seeds / "seed-3", finished)
    assert config_of(two_seeds / "seed-3") == config_of(finished)
    assert config_of(two_seeds / "seed-5")["flags"]["seed"] == 5


def test_the_end_is_mean_deviation_and_number(runs, capsys):
    assert run_here(*WORDS, "--seeds=5,3", "--save=runs", "--resume") == 0
    *_, first, second, last = capsys.readouterr().out.splitlines()
    errors = [float(read_results(runs / f"seed-{seed}")[-1]["test_error"]) for seed in (5, 3)]
    assert [first, second] == [
        f"runs/seed-{seed}: test error {error:.2%}" for seed, error in zip((5, 3), errors, strict=True)
    ]
    mean, deviation = 100 * np.mean(errors), 100 * np.std(errors, ddof=1)
    assert last == (f"Test error (%), mean ± standard deviation over seeds: {mean:.2f} ± {deviation:.2f}, n = 2")


def stop_after(monkeypatch, *, seed, epoch):
    real = engine.RunFolder.save

    def save(self, checkpoint):
        real(self, checkpoint)
        if self.path.name == f"seed-{seed}" and checkpoint.epoch == epoch:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(engine.RunFolder, "save", save)


def test_the_whole_is_stopped_and_goes_on_with_the_same_bits_and_further_seeds(two_seeds, runs, monkeypatch, capfd):
    shutil.rmtree(runs / "seed-3")
    with monkeypatch.context() as context:
        stop_after(context, seed=3, epoch=1)
        assert run_here(*WORDS, "--seeds=5,3,4", "--save=runs", "--resume") == 128 + signal.SIGTERM
    go_on = "to go on: python demo.py --save=runs --seeds=5,3,4 --resume=True"
    assert capfd.readouterr().err.splitlines()[-1].endswith(go_on)
    assert sorted(path.name for path in runs.iterdir()) == ["seed-3", "seed-5"]
    assert read_results(runs / "seed-3")[-1]["test_error"] == ""

    assert run_here("--save=runs", "--seeds=5,3,4", "--resume=True") == 0
    out = capfd.readouterr().out
    assert "The run in runs/seed-5 is finished after epoch 2; test error " in out
    assert "Resuming after epoch 1." in out
    assert out.splitlines()[-1].endswith("n = 3")
    for seed in (5, 3):
        assert_same_run(runs / f"seed-{seed}", two_seeds / f"seed-{seed}")
    assert config_of(runs / "seed-4")["flags"]["n_epochs"] == 2


@pytest.fixture
def networks(monkeypatch):
    """Weak references to all networks that are trained, each of which must be gone when the next one comes."""
    seen = []
    real = steps.place

    def place(network, inputs):
        assert [earlier() for earlier in seen] == [None] * len(seen)
        seen.append(weakref.ref(network))
        return real(network, inputs)

    monkeypatch.setattr(steps, "place", place)
    return seen


def test_a_numerical_failure_of_one_seed_does_not_stop_the_others(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = engine.Run.train

    def train(self, epoch, *others):
        if self.seed == 0:
            raise NonFiniteLoss(7)
        return real(self, epoch, *others)

    monkeypatch.setattr(engine.Run, "train", train)
    assert run_here(*WORDS, "--limit_batches=1", "--seeds=3", "--save=runs") == 1
    out, error = capsys.readouterr()
    assert re.search(r"seeds: [\d.]+ ± [\d.]+, n = 2$", out)
    warning, last = error.splitlines()
    assert warning.startswith("warning: runs/seed-0 has failed: the training loss became NaN or infinite in epoch 1, ")
    assert last == "demo.py: error: 1 of 3 runs have failed: runs/seed-0"
    assert read_results(tmp_path / "runs/seed-2")[-1]["test_error"] != ""
    assert len(networks) == 3


def test_a_signal_that_meets_a_numerical_failure_stops_them_all(tmp_path, monkeypatch, capsys):
    real = Stepper.take

    def take(self, images, labels, size):
        real(self, images * math.nan, labels, size)
        signal.raise_signal(signal.SIGTERM)  # before the loss is read

    monkeypatch.setattr(Stepper, "take", take)
    assert run_here(*WORDS, "--seeds=2", f"--save={tmp_path / 'runs'}") == 143
    assert "seed-0 has failed: the training loss became NaN or infinite" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["seed-0"]


def test_a_signal_after_the_final_test_of_one_seed_stops_them_all(tmp_path, monkeypatch):
    real = RunFolder.save

    def save(self, checkpoint):
        real(self, checkpoint)
        if checkpoint.test_error is not None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "save", save)
    assert run_here(*WORDS, "--limit_batches=1", "--seeds=2", f"--save={tmp_path / 'runs'}") == 143
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["seed-0"]


def test_another_failure_stops_them_all(tmp_path, monkeypatch, capsys):
    def train(self, epoch, *others):
        raise RunError("the disk is gone")

    monkeypatch.setattr(engine.Run, "train", train)
    assert run_here(*WORDS, "--seeds=2", f"--save={tmp_path}") == 1
    assert capsys.readouterr().err == "demo.py: error: the disk is gone\n"
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0"]


def test_processes_go_through_the_seeds_together(tmp_path):
    done = run_processes(2, *WORDS, "--limit_batches=1", "--seeds=5,3", "--save=runs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines_of_the_application(done.stderr) == []
    assert done.stdout.count("2 processes") == 2
    assert done.stdout.splitlines()[-1].endswith("n = 2")
    for seed in (5, 3):
        assert read_results(tmp_path / f"runs/seed-{seed}")[-1]["test_error"] != ""


def test_new_seeds_have_the_flags_of_those_that_are_there(two_seeds):
    given = complete({"save": two_seeds, "seeds": (8, 9), "resume": True})
    assert (given["dataset"], given["batch_size"], given["n_epochs"]) == ("digits", 128, 2)
    assert (given["seeds"], given["seed"], given["save"]) == ((8, 9), None, two_seeds)


def test_a_number_alone_is_how_many_seeds_there_are():
    assert named_seeds((3,)) == (0, 1, 2)
    assert named_seeds((3, 1)) == (3, 1)


def test_the_seeds_are_no_part_of_what_a_run_is():
    assert "seeds" in TrainSettings.names(Role.FREE) & TrainSettings.names(Role.NOT_COMPARED)


HOLDS = "holds the runs of several seeds (seed-3, seed-5); continue them with --seeds and --resume True"
BAD = [
    (["--seeds=1,2", "--seed=1", "--save=new"], "--seed 1 does not go with --seeds"),
    (
        ["--seeds=1", "--save=new"],
        "--seeds is 1, which alone is a number of seeds and must be from 2 to 1,000",
    ),
    (["--seeds=20261130", "--save=new"], "and --seed 20261130 makes a single run"),
    (["--seeds=4,1,4", "--save=new"], "--seeds names 4 twice"),
    (["--seeds=1,-2", "--save=new"], "--seeds is '-2', but must be a whole number, 0 or more"),
    (["--seeds=1,", "--save=new"], "--seeds is '', but must be a whole number"),
    (["--seeds=5,3", "--save=runs"], "runs/seed-5 already holds a run ("),
    (["--seeds=4,5", "--save=runs"], "runs/seed-5 already holds a run ("),
    (["--seeds=5,3", "--save=runs", "--resume", "--lr=0.3"], "--lr is 0.3, but the run in runs/seed-5 has 0.1"),
    (["--seeds=5,3", "--save=runs", "--resume", "--n_epochs=1"], "--n_epochs is 1, but the run in runs/seed-5 has 2"),
    (["--seeds=5,6", "--save=alone"], "--save alone holds a run of its own (config.json, results.csv), and --seeds"),
    (["--seeds=5,6", "--save=alone", "--resume"], "--save alone holds a run of its own"),
    (
        ["--seed=5", "--save=runs"],
        f"--save runs {HOLDS}, one of them with --save runs/seed-3, or choose another folder",
    ),
    (["--save=runs", "--resume"], HOLDS),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_refused_before_anything_is_trained(words, message, runs, tmp_path, capsys):
    make_run(tmp_path / "alone", make_rows(2))
    assert_refused("train", *words, message=message, folder=tmp_path, capture=capsys)
