"""TensorBoard's events, read back by TensorBoard."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from commands import requirements
from commands.settings import TrainSettings
from commands.train.checks import check_training
from commands.train.tensorboard import Events
from tests.support.application import ROOT, SMALL, read_results, run_here
from tests.support.synthetic_runs import make_rows
from train.errors import UserError
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

COLUMNS = {
    "loss/train": "train_loss",
    "loss/validation": "valid_loss",
    "loss/validation_ema": "ema_valid_loss",
    "error/train": "train_error",
    "error/validation": "valid_error",
    "error/validation_ema": "ema_valid_error",
    "error/test": "test_error",
    "learning_rate": "learning_rate",
    "speed/images_per_second": "images_per_second",
    "memory/peak_mb": "peak_memory_mb",
}


def read_back(folder):
    """All scalars, as TensorBoard shows them: (step, value) by tag."""
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def expected(rows):
    """The same, from the rows; values have 32 bits."""
    values = {tag: [(row.epoch, getattr(row, name)) for row in rows] for tag, name in COLUMNS.items()}
    known = {tag: [pair for pair in pairs if pair[1] is not None] for tag, pairs in values.items()}
    return {tag: [(step, torch.tensor(v).item()) for step, v in pairs] for tag, pairs in known.items() if pairs}


def events_in(folder):
    """Events in this folder of a run."""
    return Events(OpenFolder(folder.parent), folder.name)


def let_time_pass(monkeypatch):
    """A few seconds pass, as between two processes of a run: the names of files are by the second."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 5)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "rows", [[], make_rows(1, ema=True), make_rows(5, valid=False), make_rows(40, test_error=0.25)]
)
def test_events_are_the_rows(rows, tmp_path):
    events_in(tmp_path / "tensorboard").write(rows)
    assert read_back(tmp_path / "tensorboard") == expected(rows)


def test_events_grow_with_the_rows_in_one_file(tmp_path):
    rows = make_rows(4)
    writer = events_in(tmp_path)
    for epochs in range(1, 5):
        writer.write(rows[:epochs])
        assert read_back(tmp_path) == expected(rows[:epochs])
    rows[-1].test_error = 0.5
    writer.write(rows)
    writer.write(rows)
    assert read_back(tmp_path) == expected(rows)
    assert len(files(tmp_path)) == 1


def test_another_process_begins_anew_and_removes_what_was_ours(tmp_path, monkeypatch):
    foreign = ["events.out.tfevents.1.host.7.0", "notes.txt", "events.out.tfevents.1.densenet.mine"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"")
    for between in ("", "17-01234abc."):
        (tmp_path / f".events.out.tfevents.1.densenet.{between}tmp").write_bytes(b"half")
    (tmp_path / "events.out.tfevents.2.densenet").mkdir()
    rows = make_rows(5, test_error=0.5)
    events_in(tmp_path).write(rows)
    (first,) = set(files(tmp_path)) - {*foreign, "events.out.tfevents.2.densenet"}
    rows = make_rows(3)  # the last checkpoint was damaged, or the run is made longer
    let_time_pass(monkeypatch)
    events_in(tmp_path).write(rows)
    (second,) = set(files(tmp_path)) - {*foreign, "events.out.tfevents.2.densenet"}
    assert second > first  # a TensorBoard that watches goes on to later names
    (tmp_path / "events.out.tfevents.2.densenet").rmdir()
    assert read_back(tmp_path) == expected(rows)


def test_files_that_a_kill_left_beside_each_other_tell_each_epoch_once(tmp_path, monkeypatch):
    """The later one was whole, and the earlier one not removed yet."""
    events_in(tmp_path).write(make_rows(5))
    earlier = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    let_time_pass(monkeypatch)
    events_in(tmp_path).write(make_rows(6))
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    assert len(files(tmp_path)) == 2
    assert read_back(tmp_path) == expected(make_rows(6))


def test_a_file_that_somebody_removed_is_written_anew(tmp_path):
    writer = events_in(tmp_path)
    writer.write(make_rows(2))
    (tmp_path / files(tmp_path)[0]).unlink()
    writer.write(make_rows(3))
    assert read_back(tmp_path) == expected(make_rows(3))


def test_time_between_events_is_time_of_training(tmp_path):
    rows = make_rows(3)
    events_in(tmp_path).write(rows)
    accumulator = accumulators.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    first, second, third = (event.wall_time for event in accumulator.Scalars("loss/train"))
    assert second - first == pytest.approx(rows[1].seconds, abs=1e-3)
    assert third - second == pytest.approx(rows[2].seconds, abs=1e-3)


def test_no_package_is_one_line_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert run_here(*SMALL, f"--save={tmp_path / 'run'}", "--tensorboard") == 2
    assert capsys.readouterr().err == (
        "demo.py: error: --tensorboard is True, but the package tensorboard is missing: pip install tensorboard\n"
    )
    assert list(tmp_path.iterdir()) == []
    check_training(TrainSettings(save=tmp_path), num_processes=1, is_launched=False)  # without --tensorboard


def test_something_else_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "tensorboard").write_text("mine")
    with pytest.raises(UserError, match="tensorboard is not a folder"):
        events_in(tmp_path / "tensorboard")


# From some epoch on no file may become larger than a few bytes, which is an error of the thread that writes.
FULL_DISK = """
import resource, sys
from pathlib import Path
from commands.train.tensorboard import Events
from tests.support.synthetic_runs import make_rows
from train.errors import RunError
from train.run.open_folder import OpenFolder

writer = Events(OpenFolder(Path(sys.argv[1])))
for epochs in range(1, int(sys.argv[2])):
    writer.write(make_rows(epochs))
resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
try:
    writer.write(make_rows(int(sys.argv[2])))
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_system_that_refuses_is_one_error_and_no_traceback(epoch, tmp_path):
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(epoch)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"cannot write events into {tmp_path / 'tensorboard'}: {os.strerror(errno.EFBIG)}\n"
    assert done.stderr == ""


def test_errors_of_other_threads_are_still_printed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))
    for _ in range(2):
        events_in(tmp_path)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert seen == [ZeroDivisionError]


class Killed(BaseException):
    """An exception that no handler of the application expects."""


def as_expected(folder):
    """The events that the rows of results.csv ask for, as far as text says them."""
    rows = read_results(folder)
    values = {tag: [(int(row["epoch"]), row[name]) for row in rows if row.get(name)] for tag, name in COLUMNS.items()}
    return {tag: [(e, torch.tensor(float(v)).item()) for e, v in pairs] for tag, pairs in values.items() if pairs}


def test_events_tell_the_same_epochs_as_results_after_kills_and_resumes(tmp_path, monkeypatch):
    words = [*SMALL, "--n_epochs=3", f"--save={tmp_path}", "--resume", "--tensorboard"]
    for epoch, name in ((1, "save"), (2, "_write_products")):
        real = getattr(RunFolder, name)

        def killed(self, checkpoint, epoch=epoch, real=real):
            if checkpoint.epoch == epoch:
                raise Killed
            return real(self, checkpoint)

        with monkeypatch.context() as context:
            context.setattr(RunFolder, name, killed)
            with pytest.raises(Killed):
                run_here(*words)
    assert run_here(*words) == 0
    assert read_back(tmp_path / "tensorboard") == as_expected(tmp_path)
    assert len(files(tmp_path / "tensorboard")) == 1
    assert run_here(f"--save={tmp_path}", "--resume", "--n_epochs=4") == 0  # longer: the test error moves
    assert read_back(tmp_path / "tensorboard") == as_expected(tmp_path)
    assert len(read_back(tmp_path / "tensorboard")["error/test"]) == 1
    assert run_here(f"--save={tmp_path}", "--resume", "--tensorboard=False") == 0
