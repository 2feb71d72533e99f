"""A run that is stopped inside an epoch goes on at the next step, with the bits of one that nothing has disturbed."""

import math
import random
import re
import signal
from unittest import mock

import pytest
import torch

from commands.train.curves import Curves
from data.loader import Loader
from tests.support.application import ROOT, assert_same_run, everything_in, read_results, run_here
from tests.support.stops import restless_scale, signal_in_step
from train import engine
from train.errors import RunError
from train.run.checkpoint import read_checkpoint
from train.step import Stepper

STEPS, EPOCHS, BATCH = 5, 3, 32  # steps of an epoch, epochs, and images of a step
SMALL = ["--dataset=digits", "--depth=10", "--growth_rate=2", f"--batch_size={BATCH}", "--seed=3"]
WORDS = [*SMALL, f"--n_epochs={EPOCHS}", f"--limit_batches={STEPS}", "--drop_rate=0.2", "--augment"]
FP16 = [*WORDS, "--precision=fp16", "--accum_steps=2", "--mixup=0.4", "--ema=0.9", "--clip_grad=5"]
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Killed(BaseException):
    """An exception that no handler of the application expects."""


def run(save, *words):
    with restless_scale(), mock.patch.object(Curves, "write"):  # which takes more time than an epoch
        return run_here(*words, f"--save={save}", "--resume")


def stop_in_step(save, *words, at, number=signal.SIGTERM):
    """Go on with a run until a signal comes in a step, counted from there."""
    with signal_in_step(number, at):
        assert run(save, *words) == 128 + number


def state_of(save):
    """Everything in checkpoint.pt but times, as text and tensors."""
    checkpoint = read_checkpoint(save / "checkpoint.pt")
    tensors = [*checkpoint.network.values(), *checkpoint.chosen.values(), *checkpoint.ema.values()]
    tensors += [state["momentum_buffer"] for state in checkpoint.optimizer["state"].values()]
    return (checkpoint.scaler, checkpoint.unfinished), tensors


def assert_same_end(save, expected):
    assert_same_run(save, expected)
    (values, tensors), (its_values, its_tensors) = state_of(save), state_of(expected)
    assert values == its_values
    assert all(map(torch.equal, tensors, its_tensors))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder, *WORDS) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed_fp16(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "fp16"
    assert run(folder, *FP16) == 0
    return folder


def test_it_is_stopped_in_many_steps_and_ends_in_the_same_bits(undisturbed_fp16, tmp_path, capsys):
    assert sum(int(row["skipped_steps"]) for row in read_results(undisturbed_fp16)) >= EPOCHS
    draw, taken, save = random.Random(0), 0, tmp_path / "run"
    stops = [1, *(draw.randint(1, 3) for _ in range(5))]  # the first leaves no epoch that is finished
    for at, number in zip(stops, STOPS * 2, strict=True):
        stop_in_step(save, *FP16, at=at, number=number)
        done, taken = taken, taken + at
        out, error = capsys.readouterr()
        where = f"in epoch {1 + (taken - 1) // STEPS}, batch {1 + (taken - 1) % STEPS}"
        assert f"stopped by {number.name} {where}; {save} holds all that was trained; to go on: " in error
        assert error.endswith(f"python demo.py --save={save} --resume=True\n")
        if done % STEPS:
            assert f"\nResuming in epoch {1 + done // STEPS}, after batch {done % STEPS}.\n" in out
    assert taken < STEPS * EPOCHS
    assert run(save) == 0
    assert_same_end(save, undisturbed_fp16)


@pytest.mark.parametrize("killed_in", [2, STEPS + 3])
def test_what_is_saved_every_few_minutes_survives_a_kill(killed_in, undisturbed, tmp_path, monkeypatch, capsys):
    def take(self, *batch, real=Stepper.take):
        if engine.RunFolder.save.saved == killed_in - 1:
            raise Killed
        real(self, *batch)

    def save_counted(self, checkpoint, real=engine.RunFolder.save):
        save_counted.saved += checkpoint.unfinished is not None
        real(self, checkpoint)

    save_counted.saved = 0
    with monkeypatch.context() as context:
        context.setattr(engine.RunFolder, "save", save_counted)
        context.setattr(Stepper, "take", take)
        with pytest.raises(Killed):
            run(tmp_path, *WORDS, "--checkpoint_minutes=1e-9")
    capsys.readouterr()
    assert run(tmp_path, "--checkpoint_minutes=1000") == 0
    epoch, batch = divmod(killed_in - 1, STEPS)
    assert f"\nResuming in epoch {epoch + 1}, after batch {batch}.\n" in capsys.readouterr().out
    assert_same_end(tmp_path, undisturbed)


def test_a_damaged_checkpoint_inside_an_epoch_leaves_the_one_before(undisturbed, tmp_path, capsys):
    stop_in_step(tmp_path, *WORDS, at=STEPS + 1)
    stop_in_step(tmp_path, at=2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert "; going on from checkpoint.previous.pt, in epoch 2, after batch 1; " in capsys.readouterr().err
    assert_same_end(tmp_path, undisturbed)


def test_a_stop_in_validation_repeats_no_step(undisturbed, tmp_path, monkeypatch, capsys):
    def signalled(self, real=Loader.__iter__):
        for batch in real(self):
            signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as context:
        context.setattr(Loader, "__iter__", signalled)
        assert run(tmp_path, *WORDS) == 143
    assert "stopped by SIGTERM in validation 1/3, batch 1; " in capsys.readouterr().err
    stop_in_step(tmp_path, at=1)
    out, error = capsys.readouterr()
    assert f"\nResuming in epoch 1, after batch {STEPS}.\nepoch 1/3 " in out
    assert "in epoch 2, batch 1; " in error
    assert run(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)


def test_another_strategy_goes_on_inside_an_epoch(tmp_path):
    words = [*SMALL, "--n_epochs=1", "--limit_batches=3", "--drop_rate=0.2", "--efficient=naive"]
    assert run(tmp_path / "naive", *words) == 0
    stop_in_step(tmp_path / "changed", *words, at=2)
    assert run(tmp_path / "changed", "--efficient=checkpoint") == 0
    assert_same_end(tmp_path / "changed", tmp_path / "naive")


def test_the_epoch_in_hand_keeps_its_rate_when_the_run_becomes_longer(tmp_path):
    words = [*SMALL, "--n_epochs=2", "--limit_batches=2"]
    stop_in_step(tmp_path, *words, at=3)
    assert run(tmp_path, "--n_epochs=4") == 0
    assert [float(row["learning_rate"]) for row in read_results(tmp_path)] == [0.1, 0.01, 0.01, 0.001]


def test_seconds_are_those_of_all_parts_of_an_epoch(tmp_path):
    stop_in_step(tmp_path, *SMALL, "--n_epochs=1", "--limit_batches=3", at=2)
    saved = read_checkpoint(tmp_path / "checkpoint.pt").unfinished
    assert saved.seconds > 0
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["unfinished"]["seconds"] = 100.0
    torch.save(content, path)
    assert run(tmp_path) == 0
    (row,) = read_results(tmp_path)
    assert 100 < float(row["seconds"]) < 150
    assert 0.6 <= float(row["images_per_second"]) <= 3 * BATCH / 96


def test_other_commands_take_a_run_without_a_finished_epoch_as_such(tmp_path, capsys):
    stop_in_step(tmp_path, *WORDS, at=2)
    before = everything_in(tmp_path)
    capsys.readouterr()
    for command in (["evaluate"], ["predict", str(ROOT / "docs/digits.png")], ["export", "--format=onnx"]):
        assert run_here(*command, f"--save={tmp_path}") == 2
        error = capsys.readouterr().err
        assert re.fullmatch(rf"demo\.py {command[0]}: error: .*has no chosen weights yet.*\n", error)
    assert run_here("compare", str(tmp_path)) == 0
    assert re.search(rf"^epochs +0 of {EPOCHS}$", capsys.readouterr().out, re.MULTILINE)
    assert everything_in(tmp_path) == before


def spoil_a_weight(stepper):
    with torch.no_grad():
        next(stepper.model.parameters())[0, 0, 0, 0] = math.inf


@pytest.mark.parametrize(
    ("value", "spoil", "message"),
    [
        (math.nan, None, "the training loss became NaN or infinite in epoch 1, batch 3"),
        (1.0, spoil_a_weight, "weights, running statistics or momentum became NaN or infinite in epoch 1, batch 3"),
    ],
)
def test_a_signal_saves_nothing_that_is_no_number(value, spoil, message, tmp_path, monkeypatch, capsys):
    def take(self, images, labels, size, real=Stepper.take):
        is_third = self.num_steps == 2
        real(self, images * value if is_third else images, labels, size)
        if is_third:
            (spoil or id)(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Stepper, "take", take)
    assert run(tmp_path, *WORDS) == 1
    assert f"demo.py: error: {message}, at learning rate 0.1; the folder stays at its last " in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_stop_that_cannot_be_saved_says_so(tmp_path, monkeypatch, capsys):
    def save(self, checkpoint):
        raise RunError("cannot write: No space left on device")

    monkeypatch.setattr(engine.RunFolder, "save", save)
    with signal_in_step(signal.SIGTERM, 2):
        assert run(tmp_path, *WORDS) == 1
    assert capsys.readouterr().err == "demo.py: error: cannot write: No space left on device\n"
