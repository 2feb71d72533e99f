"""A checkpoint names its run: that of another one is refused by the flag that differs; results and weights agree."""

import json
import shutil

import pytest
import torch

from commands.run_record import read_record, read_with_record
from tests.support.application import SMALL, assert_same_run, everything_in, read_results, run_here
from tests.support.synthetic_runs import make_rows
from tests.support.untrained_run import run_quickly, seeds_in, weights
from train.errors import UserError
from train.run.checkpoint import Checkpoint
from train.run.config import CHECKPOINT, MODEL, RESULTS
from train.run.files import load_tensors
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder

RUN = {"seed": 1, "lr": 0.1, "wd": 1e-4, "n_epochs": 3, "limit_batches": None, "init_weights": None, "efficient": True}


def folder_of(path, **flags):
    identity = RunIdentity(
        RUN | flags,
        {"momentum": 0.9},
        free=frozenset({"efficient"}),
        chosen=frozenset({"seed"}),
        growing=frozenset({"n_epochs"}),
        by_file_name=frozenset({"init_weights"}),
    )
    return RunFolder(path, OpenFolder(path), identity=identity)


def save(folder, epoch, seed=1):
    folder.save(Checkpoint(make_rows(epoch), network=weights(seed, epoch), chosen=weights(seed, epoch)))


@pytest.mark.parametrize(
    ("flag", "recorded", "value"),
    [
        ("seed", 777, 1),
        ("lr", 0.02, 0.1),
        ("wd", 0.01, 1e-4),
        ("limit_batches", 10, None),
        ("limit_batches", None, 10),
        ("momentum", 0.5, 0.9),
        ("n_epochs", 8, 3),
        ("init_weights", "/a/first.pt", "/b/second.pt"),
    ],
)
@pytest.mark.parametrize("is_previous", [False, True])
def test_the_flag_that_differs_is_named_with_both_values(is_previous, flag, recorded, value, tmp_path):
    save(folder_of(tmp_path, **{flag: recorded}), 1)
    if is_previous:
        (tmp_path / CHECKPOINT).rename(tmp_path / "checkpoint.previous.pt")
    before = everything_in(tmp_path)
    message = f"is of another run: it was trained with --{flag} {recorded}, and this run has --{flag} {value}; "
    with pytest.raises(UserError) as refusal:
        folder_of(tmp_path, **{flag: value}).load(n_epochs=3)
    assert message in str(refusal.value)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("flag", "recorded", "value"),
    [
        ("n_epochs", 3, 8),
        ("efficient", True, "naive"),
        ("init_weights", "/a/first.pt", "/b/first.pt"),
        ("seed", 1, None),
    ],
)
def test_what_may_differ_goes_on(flag, recorded, value, tmp_path):
    save(folder_of(tmp_path, **{flag: recorded}), 1)
    assert folder_of(tmp_path, **{flag: value}).load(n_epochs=3).epoch == 1


def test_a_damaged_checkpoint_is_not_put_aside_for_one_of_another_run(tmp_path, capsys):
    folder = folder_of(tmp_path, seed=777)
    save(folder, 1)
    save(folder, 2)
    (tmp_path / CHECKPOINT).write_bytes(b"half")
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint\.previous\.pt is of another run"):
        folder_of(tmp_path).load(n_epochs=3)
    assert everything_in(tmp_path) == before
    assert capsys.readouterr().err == ""


def as_written_by(version, path):
    """A checkpoint in one of the formats before."""
    content = load_tensors(path)
    later = ("unfinished", "flags", "scaler")[: 4 - version]
    torch.save({name: value for name, value in content.items() if name not in later} | {"format": version}, path)


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_an_earlier_version_goes_on_to_the_same_bits_with_a_note(version, finished, tmp_path, capsys):
    """It cannot name its run."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.copy(run / "checkpoint.previous.pt", run / CHECKPOINT)
    (run / "checkpoint.previous.pt").unlink()
    as_written_by(version, run / CHECKPOINT)
    assert run_here(f"--save={run}", "--resume") == 0
    note = f"note: {run / CHECKPOINT} was written by an older version, and does not say which run it is of\n"
    assert capsys.readouterr().err == note
    assert_same_run(run, finished)
    assert load_tensors(run / CHECKPOINT)["flags"]["seed"] == 3


def test_a_checkpoint_of_another_run_is_refused_by_the_program(finished, tmp_path, capsys):
    """As if it had been copied, and config.json edited."""
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["flags"]["wd"] = 0.05
    (run / "config.json").write_text(json.dumps(config))
    before = everything_in(run)
    assert run_here(f"--save={run}", "--resume", "--n_epochs=3") == 2
    error = capsys.readouterr().err
    assert "checkpoint.pt is of another run: it was trained with --wd 0.0001, and this run has --wd 0.05; " in error
    assert error.count("\n") == 1
    assert everything_in(run) == before


def test_a_checkpoint_that_was_augmented_otherwise_than_the_program_chooses_is_refused(long_copy, capsys):
    config = json.loads((long_copy / "config.json").read_text())
    config["flags"]["augment"] = None  # on digits the program chooses False
    (long_copy / "config.json").write_text(json.dumps(config))
    before = everything_in(long_copy)
    assert run_here(f"--save={long_copy}", "--resume", "--n_epochs=5") == 2
    error = capsys.readouterr().err
    assert "is of another run: it was trained with --augment True, and this run has --augment False; " in error
    assert everything_in(long_copy) == before


def test_links_on_the_way_are_followed_once(tmp_path, monkeypatch):
    """Another run may turn them round while this one goes on."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    latest = tmp_path / "latest"
    latest.symlink_to("one")
    from train import engine

    real = engine.RunFolder.save

    def turn(self, checkpoint):
        latest.unlink(missing_ok=True)
        latest.symlink_to("two")
        real(self, checkpoint)

    monkeypatch.setattr(engine.RunFolder, "save", turn)
    assert run_here(*SMALL, "--n_epochs=1", "--limit_batches=1", f"--save={latest}") == 0
    assert len(read_results(tmp_path / "one")) == 1
    assert json.loads((tmp_path / "one/config.json").read_text())["flags"]["save"] == str(tmp_path / "one")
    assert list((tmp_path / "two").iterdir()) == []


def test_a_link_that_leads_nowhere_is_refused(tmp_path, capsys):
    (tmp_path / "unmounted").symlink_to(tmp_path / "disk")
    for save in ("unmounted", "unmounted/run"):
        assert run_here(*SMALL, f"--save={tmp_path / save}") == 2
        assert f"--save {tmp_path / save} cannot be written: File exists" in capsys.readouterr().err
    assert not (tmp_path / "disk").exists()


class Killed(BaseException):
    """An error that no handler expects."""


def epochs_told(folder):
    """The epoch that the weights are of, and the one that `evaluate` would name; None where it says it is not known."""
    told = read_record(folder).progress()
    epoch = int(load_tensors(folder / MODEL)["weight"][0, 0]) % 100
    return epoch, None if "not known" in told else int(told.split()[3].rstrip(","))


def test_a_kill_at_any_rename_leaves_no_wrong_epoch(tmp_path, monkeypatch):
    """Nor does one at any removal. A kill leaves what `finally` would clear."""
    seen, killed_at = set(), 0
    for call in range(100):
        folder = tmp_path / str(call)
        run_until(folder, 1)
        left = [call]
        with monkeypatch.context() as context:
            for name in ("_rename", "discard"):
                context.setattr(OpenFolder, name, killing(getattr(OpenFolder, name), left))
            try:
                run_quickly(folder, seed=1, resume=True)
                break
            except Killed:
                killed_at += 1
        epoch, told = epochs_told(folder)
        assert told in (None, epoch)
        seen.add((epoch, told))
        run_quickly(folder, seed=1, resume=True)
        assert epochs_told(folder) == (2, 2)
        assert seeds_in(folder) == {1}
    assert killed_at > 5
    assert seen >= {(1, 1), (1, None), (2, None), (2, 2)}


def run_until(folder, last):
    """A run that was killed at the beginning of the next epoch."""

    def at(moment, epoch):
        if (moment, epoch) == ("in training", last + 1):
            raise Killed

    with pytest.raises(Killed):
        run_quickly(folder, seed=1, at=at)


def killing(real, left):
    def call(self, *arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, *arguments)

    return call


def test_weights_are_read_with_the_results_that_speak_of_them(tmp_path):
    """A run finishes an epoch between the two."""
    run_quickly(tmp_path, seed=1)
    folder, reads = folder_of(tmp_path), []
    save(folder, 1)

    def read():
        if not reads:
            save(folder, 2)
        reads.append(epochs_told(tmp_path))
        return int(load_tensors(tmp_path / MODEL)["weight"][0, 0]) % 100

    book, epoch = read_with_record(tmp_path, read)
    assert len(reads) == 2
    assert (len(book.rows), epoch) == (2, 2)


def test_a_run_that_never_stops_writing_is_one_line(tmp_path):
    run_quickly(tmp_path, seed=1)
    rows = iter(range(1, 1000))
    with pytest.raises(UserError, match="writes its files faster than they can be read"):
        read_with_record(tmp_path, lambda: (tmp_path / RESULTS).write_text(_table(next(rows))))


def _table(epochs):
    from train.run.history import to_csv

    return to_csv(make_rows(epochs))
