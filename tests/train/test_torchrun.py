"""The application under torchrun: one writer, errors said once, signals, and going on in other numbers of processes."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from data.datasets import DATASETS, load
from data.loader import make_loaders
from models import densenet_bc
from tests.support.application import ROOT, SMALL, assert_same_run, read_results, run_apart
from tests.support.synthetic_images import make_folder
from tests.support.torchrun import lines_of_the_application, run_processes, start_processes
from train import engine
from train.run.checkpoint import read_checkpoint
from train.signals import GracefulStop
from train.terminal import Bar

EPOCHS = 3
WORDS = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment", "--ema=0.9"]
STOPPING = ROOT / "tests" / "faults" / "stopping_program.py"
FAULTY = ROOT / "tests" / "support" / "second_process_fault.py"


@pytest.fixture(scope="module")
def run_of_two_processes(tmp_path_factory):
    """The end of a run in two processes, and its folder."""
    folder = tmp_path_factory.mktemp("processes")
    return run_processes(2, *WORDS, "--save=run", folder=folder), folder / "run"


def test_two_processes_train_one_network_and_speak_with_one_voice(run_of_two_processes):
    done, folder = run_of_two_processes
    assert done.returncode == 0, done.stderr
    first, images, *epochs, last = done.stdout.splitlines()
    assert first.endswith("parameters, 2 processes, each CPU, 1 thread")
    assert images == "1,302 training, 140 validation and 355 test images"
    assert [line.split()[1] for line in epochs] == [f"{epoch}/{EPOCHS}" for epoch in range(1, EPOCHS + 1)]
    assert last.startswith("Test error ")
    assert lines_of_the_application(done.stderr) == []
    assert [row["epoch"] for row in read_results(folder)] == ["1", "2", "3"]


def test_a_run_in_two_processes_can_be_read_and_made_longer_by_one(run_of_two_processes, tmp_path):
    copy = shutil.copytree(run_of_two_processes[1], tmp_path / "copy")
    longer = run_apart(f"--save={copy}", "--resume", "--n_epochs=4", folder=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert [row["epoch"] for row in read_results(copy)] == ["1", "2", "3", "4"]
    assert read_results(copy, timing=False)[0] == read_results(run_of_two_processes[1], timing=False)[0]


def test_both_validate_with_the_statistics_that_are_saved(run_of_two_processes):
    """One process, with the weights of the last epoch or their average, finds the loss that two found together."""
    checkpoint, spec = read_checkpoint(run_of_two_processes[1] / "checkpoint.pt"), DATASETS["digits"]
    network = densenet_bc(10, 2)
    source = load("digits", folder=None, download=False)
    split = {"batch_size": 128, "valid_size": None, "augment": True, "seed": 3}
    _, valid, _ = make_loaders(source, spec, torch.device("cpu"), **split)
    together = checkpoint.rows[-1]
    for weights, loss, error in (
        (checkpoint.network, together.valid_loss, together.valid_error),
        (checkpoint.network | checkpoint.ema, together.ema_valid_loss, together.ema_valid_error),
    ):
        network.load_state_dict({name: value for name, value in weights.items() if name != "steps"})
        alone = engine.evaluate(network, valid, Bar("validation", valid.num_images), GracefulStop())
        assert loss == pytest.approx(alone.loss, rel=1e-5)
        assert error == alone.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save=s", "--deph=10"], "demo.py: error: unknown flag '--deph'; did you mean --depth?"),
        (
            ["--save=s", "--dataset=digits", "--batch_size=1"],
            "demo.py: error: --batch_size is 1, but must be 2 or more: "
            "an image for each micro-batch of --accum_steps 1 in each of 2 processes",
        ),
        (["benchmark"], "demo.py benchmark: error: torchrun is for training; start benchmark without it"),
        (["trian"], "demo.py: error: unknown command 'trian'; did you mean train?"),
    ],
)
def test_a_bad_line_is_refused_once_and_nothing_is_made(words, message, tmp_path):
    done = run_processes(2, *words, folder=tmp_path)
    assert done.returncode == 1  # the launcher's; the processes' is in its report
    assert lines_of_the_application(done.stderr) == [message]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_all_processes_find_in_the_data_is_said_once(tmp_path):
    make_folder(tmp_path / "images", {"train": 3, "val": 1, "test": 1})
    words = ["--dataset=folder", "--data=images", "--depth=10", "--valid_size=2", "--save=run"]
    done = run_processes(3, *words, folder=tmp_path)
    (line,) = lines_of_the_application(done.stderr)
    assert line.startswith("demo.py: error: --valid_size is 2, but the data set has 3 validation images of its own")
    assert not (tmp_path / "run").exists()


def test_processes_with_other_data_do_not_train_together(tmp_path):
    done = run_processes(
        2,
        "other data",
        *WORDS,
        "--save=run",
        folder=tmp_path,
        program=FAULTY,
    )
    assert done.returncode == 1
    (line,) = lines_of_the_application(done.stderr)
    assert line.startswith("demo.py: error: the processes of the run do not find the same classes and files in --data")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [("data", "demo.py: error: there is no data on this machine"), ("bug", "ZeroDivisionError: a mistake")],
)
def test_what_only_one_process_finds_is_said_by_that_one(fault, said, tmp_path):
    done = run_processes(2, fault, *WORDS, "--save=run", folder=tmp_path, program=FAULTY)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()
    assert "gloo" not in done.stderr  # nor a traceback of the process that was waiting
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_after_the_same_step_and_another_number_goes_on(number, tmp_path):
    words = [*SMALL, "--n_epochs=500", "--save=run"]
    process = start_processes(2, *words, folder=tmp_path)
    lines = [process.stdout.readline() for _ in range(3)]  # the first epoch is done
    assert lines[2].startswith("epoch   1/500"), process.communicate()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    name = signal.Signals(number).name
    noted, stopped = lines_of_the_application(err)
    assert noted == f"{name}: stopping after the batch in hand; a second signal stops at once"
    assert stopped.startswith(f"demo.py: stopped by {name} ")
    go_on = "torchrun --nproc_per_node=2 demo.py --save=run --resume=True"
    assert stopped.endswith(f"; run holds all that was trained; to go on: {go_on}")
    assert len(read_results(tmp_path / "run")) >= 1


def test_two_processes_go_on_inside_an_epoch_with_the_bits_of_an_undisturbed_run(run_of_two_processes, tmp_path):
    """The last one gets the signal at the beginning of the second epoch."""
    stopped = run_processes(2, "SIGUSR1:12", *WORDS, "--save=run", folder=tmp_path, program=STOPPING)
    where = re.search(r"stopped by SIGUSR1 in (epoch 2, batch \d+|validation 2/3, batch \d+); ", stopped.stderr)
    assert where, stopped.stderr
    done = run_processes(2, "--save=run", "--resume", folder=tmp_path)
    assert "\nResuming in epoch 2, after batch " in done.stdout, done.stderr
    assert_same_run(tmp_path / "run", run_of_two_processes[1])


def test_processes_of_another_number_go_on_with_a_run(run_of_two_processes, tmp_path):
    copy = shutil.copytree(run_of_two_processes[1], tmp_path / "copy")
    longer = run_processes(3, f"--save={copy}", "--resume", "--n_epochs=4", folder=tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert [row["epoch"] for row in read_results(copy)] == ["1", "2", "3", "4"]


def test_a_process_that_dies_ends_the_others_with_a_line_and_nothing_is_lost(run_of_two_processes, tmp_path):
    process = start_processes(2, *WORDS, "--save=run", folder=tmp_path)
    for _ in range(3):
        process.stdout.readline()
    *_, last = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(last, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = lines_of_the_application(err)
    assert "demo.py: error: another process of the run has ended or does not answer" in lines
    assert "[rank" not in err  # how PyTorch prints a traceback of a process
    assert run_processes(2, "--save=run", "--resume", folder=tmp_path).returncode == 0
    assert_same_run(tmp_path / "run", run_of_two_processes[1])
