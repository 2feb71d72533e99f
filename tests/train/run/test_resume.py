"""A run that goes on ends with the bits of one that nothing has disturbed."""

import json
import re
import shutil
import signal

import pytest

from data.loader import Loader
from tests.support.application import EPOCHS, LONGER, SMALL, assert_same_run, everything_in, read_results, run_here
from tests.support.synthetic_runs import make_rows
from train import engine
from train.run.checkpoint import Checkpoint
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder


class Killed(BaseException):
    """An exception that no handler of the application expects."""


def kill_at(monkeypatch, epoch, name):
    """Let the run end inside the write of a file, or in the evaluation, of one epoch."""
    real = getattr(engine.RunFolder, name)

    def killed(self, checkpoint):
        if checkpoint.epoch == epoch:
            raise Killed
        return real(self, checkpoint)

    monkeypatch.setattr(engine.RunFolder, name, killed)


@pytest.mark.parametrize("name", ["save", "_write_products"])
@pytest.mark.parametrize("epoch", [1, 2, EPOCHS])
def test_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(epoch, name, long_run, tmp_path, monkeypatch):
    words = [*LONGER, f"--save={tmp_path / 'run'}", "--resume"]
    with monkeypatch.context() as context:
        kill_at(context, epoch, name)
        with pytest.raises(Killed):
            run_here(*words)
    assert run_here(*words) == 0
    assert_same_run(tmp_path / "run", long_run)


def test_resume_needs_no_flag_of_the_run_again(long_run, tmp_path, monkeypatch):
    first = [*LONGER, f"--save={tmp_path / 'run'}"]
    with monkeypatch.context() as context:
        kill_at(context, 2, "save")
        with pytest.raises(Killed):
            run_here(*first)
    assert run_here(f"--save={tmp_path / 'run'}", "--resume", "True") == 0
    assert_same_run(tmp_path / "run", long_run)


def test_another_strategy_may_go_on(tmp_path, monkeypatch):
    assert run_here(*LONGER, "--efficient=False", f"--save={tmp_path / 'naive'}") == 0
    with monkeypatch.context() as context:
        kill_at(context, 3, "save")
        with pytest.raises(Killed):
            run_here(*LONGER, "--efficient=False", f"--save={tmp_path / 'changed'}")
    shutil.copytree(tmp_path / "changed", tmp_path / "buffer")
    assert run_here(f"--save={tmp_path / 'changed'}", "--resume", "--efficient=checkpoint") == 0
    assert_same_run(tmp_path / "changed", tmp_path / "naive")
    assert run_here(f"--save={tmp_path / 'buffer'}", "--resume", "--efficient=buffer") == 0
    losses = [[float(row["train_loss"]) for row in read_results(tmp_path / name)] for name in ("naive", "buffer")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_finished_run_says_so_and_is_left_alone(long_copy, capsys):
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume") == 0
    assert f"The run in {long_copy} is finished after epoch {EPOCHS}; test error" in capsys.readouterr().out
    assert everything_in(long_copy) == before


def test_files_that_a_kill_has_damaged_or_removed_are_written_again(long_copy):
    before = everything_in(long_copy)
    for name in ("results.csv", "model.pt", "curves.png", "results.json"):
        (long_copy / name).unlink()
    (long_copy / ".model.pt.tmp").write_bytes(b"half")
    assert run_here(f"--save={long_copy}", "--resume") == 0
    assert everything_in(long_copy) == before


def test_more_epochs_go_on_with_the_rates_of_the_longer_run(long_copy, capsys):
    short = read_results(long_copy, timing=False)
    assert run_here(f"--save={long_copy}", "--resume", "--n_epochs=8") == 0
    assert f"The run had ended after {EPOCHS} epochs with test error" in capsys.readouterr().out
    rows = read_results(long_copy, timing=False)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 9)]
    assert [float(row["learning_rate"]) for row in rows[EPOCHS:]] == [0.01, 0.01, 0.001, 0.001]
    for old, new in zip(short, rows, strict=False):
        assert {**old, "test_error": ""} == new
    assert [row["test_error"] != "" for row in rows] == [False] * 7 + [True]
    assert json.loads((long_copy / "config.json").read_text())["flags"]["n_epochs"] == 8


def test_one_epoch_is_not_several(tmp_path, capsys):
    folder = RunFolder(tmp_path, OpenFolder(tmp_path), identity=RunIdentity())
    folder.save(Checkpoint(make_rows(1, test_error=0.25)))
    assert folder.load(n_epochs=2).test_error is None
    assert capsys.readouterr().out == "The run had ended after 1 epoch with test error 25.00%.\n"


def test_resume_starts_a_run_where_there_is_none(long_run, tmp_path):
    folder = tmp_path / "deep" / "run"
    words = [*LONGER, f"--save={folder}", "--resume=True"]
    assert run_here(*words) == 0
    assert_same_run(folder, long_run)
    assert run_here(*words) == 0


def test_interrupt_is_one_line_and_the_folder_can_go_on(tmp_path, monkeypatch, capsys):
    save = engine.RunFolder.save

    def interrupt(self, checkpoint):
        signal.raise_signal(signal.SIGINT)
        save(self, checkpoint)

    with monkeypatch.context() as context:
        context.setattr(engine.RunFolder, "save", interrupt)
        assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}") == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("demo.py: stopped by SIGINT after epoch 1; ")
    assert error.endswith(f"to go on: python demo.py --save={tmp_path} --resume=True\n")
    assert len(read_results(tmp_path)) == 1
    assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}", "--resume") == 0


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A run of one epoch that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert run_here(*SMALL, "--n_epochs=1", f"--save={folder}") == 0
    return folder


# The images of digits are in memory: the first pass over them in their own order is validation, the second the test.
@pytest.mark.parametrize(("number", "where", "epochs"), [(1, "validation 1/1", 0), (2, "final test", 1)])
def test_a_signal_in_an_evaluation_ends_it_after_the_batch_in_hand(
    number, where, epochs, short_run, tmp_path, monkeypatch, capsys
):
    save = tmp_path / "run"
    passes, in_order = [], Loader.__iter__

    def signalled(self):
        passes.append(0)
        for batch in in_order(self):
            passes[-1] += 1
            if len(passes) == number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as context:
        context.setattr(Loader, "__iter__", signalled)
        assert run_here(*SMALL, "--n_epochs=1", f"--save={save}") == 143
    assert (len(passes), passes[-1]) == (number, 1)
    out, error = capsys.readouterr()
    assert error.startswith(f"demo.py: stopped by SIGTERM in {where}, batch 1; ")
    assert error.endswith(f"to go on: python demo.py --save={save} --resume=True\n")
    assert len(re.findall("^epoch ", out, re.MULTILINE)) == epochs
    assert run_here(f"--save={save}", "--resume") == 0
    assert_same_run(save, short_run)


def test_validation_and_test_have_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run_here(*SMALL, "--n_epochs=1", f"--save={tmp_path}") == 0
    error = capsys.readouterr().err
    assert re.search(r"\rvalidation 1/1: .*/140 ", error)
    assert re.search(r"\rfinal test: .*/355 ", error)
