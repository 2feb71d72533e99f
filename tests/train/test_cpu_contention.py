"""A machine that is too busy for the threads that compute, and the flag that helps."""

import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.application import SMALL, run_here
from tests.support.benchmark_cases import TINY
from tests.support.synthetic_images import encoded, picture, write
from train import cpu_contention

CPU = torch.device("cpu")


def reading(clock, waited, *, ran=None, process=0.0):
    return cpu_contention.Reading(clock, process, ran or dict.fromkeys(waited, 0.0), waited)


@pytest.mark.parametrize(
    ("before", "after", "fraction"),
    [
        ({1: 2.0, 2: 5.0}, {1: 3.0, 2: 10.0}, 0.5),  # 5 of 10 seconds
        ({1: 2.0}, {1: 2.0, 7: 4.0}, 0.4),  # a thread that began meanwhile
        ({1: 2.0, 7: 9.0}, {1: 2.1}, 0.01),  # and one that ended
        ({1: 0.0}, {1: 11.0}, 1.0),
        ({1: 3.0}, {1: 2.0}, 0.0),
        ({}, {}, 0.0),
    ],
)
def test_the_thread_that_waits_longest_counts(before, after, fraction):
    assert cpu_contention.fraction_of_waiting(reading(100, before), reading(110, after)) == pytest.approx(fraction)


@pytest.mark.parametrize(("process", "fraction"), [(11.0, 0.6), (12.0, 0.5), (19.0, 0.0), (10.9, 0.6)])
def test_waiting_for_threads_of_its_own_does_not_count(process, fraction):
    """Two threads compute for 4 and 7 seconds and one waits for 6; the rest of the process ran for 0, 1 and 8."""
    before = reading(0, {1: 0.0, 2: 1.0}, ran={1: 3.0, 2: 0.0}, process=5.0)
    after = reading(10, {1: 6.0, 2: 1.0}, ran={1: 7.0, 2: 7.0}, process=5.0 + process)
    assert cpu_contention.fraction_of_waiting(before, after) == pytest.approx(fraction)


def make_task(root, task, text):
    (root / str(task)).mkdir()
    (root / str(task) / "schedstat").write_text(text)


def test_the_scheduler_counts_running_and_waiting_in_nanoseconds(tmp_path):
    make_task(tmp_path, 101, "7000000000 2500000000 12\n")
    make_task(tmp_path, 102, "1 0 3\n")
    figures = cpu_contention.read_scheduler(tmp_path)
    assert figures.ran == {101: 7.0, 102: 1e-9}
    assert figures.waited == {101: 2.5, 102: 0.0}


@pytest.mark.parametrize("text", ["", "1\n", "a b c\n", None])
def test_where_the_system_does_not_tell_nothing_is_known(text, tmp_path):
    if text is not None:
        make_task(tmp_path, 101, text)
    assert cpu_contention.read_scheduler(tmp_path if text is not None else tmp_path / "nowhere") is None


def test_threads_that_read_files_do_not_count(tmp_path):
    is_over, has_begun = threading.Event(), threading.Event()
    reader = threading.Thread(target=lambda: (has_begun.set(), is_over.wait(60)))
    reader.start()
    has_begun.wait(60)
    for task in (threading.main_thread().native_id, reader.native_id):
        make_task(tmp_path, task, "0 1000000000 1")
    assert cpu_contention.read_scheduler(tmp_path).waited == {threading.main_thread().native_id: 1.0}
    is_over.set()
    reader.join()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no schedstat")
def test_this_process_has_a_thread_that_computes():
    figures = cpu_contention.read_scheduler()
    assert 0 < figures.ran[os.getpid()] <= figures.process + 1  # on Linux the main thread has its process's number


def test_the_line_names_cause_and_remedy():
    line = cpu_contention.advice(0.62, threads=2, environment={})
    assert "of the last 10 seconds one thread waited 62% for a CPU" in line
    assert line.endswith("try fewer --threads (now 2), or OMP_WAIT_POLICY=passive in the environment")
    assert cpu_contention.advice(0.62, threads=4, environment={"OMP_WAIT_POLICY": "passive"}).endswith(
        "--threads (now 4)"
    )
    assert cpu_contention.advice(0.62, threads=4, environment={"GOMP_SPINCOUNT": "1000"}).endswith("--threads (now 4)")


@pytest.mark.parametrize(("waited", "number"), [(0.9, 1), (0.0, 0)])
def test_a_busy_machine_is_said_once(waited, number, monkeypatch):
    """The figures are synthetic: each time they are read, a thread has waited for this fraction of a minute."""
    reads, warnings, enough = [], [], threading.Event()

    def read():
        reads.append(reading(60.0 * len(reads), {1: 60.0 * waited * len(reads)}))
        if len(reads) >= 5 or warnings:
            enough.set()
        return reads[-1]

    monkeypatch.setattr(cpu_contention, "read_scheduler", read)
    monkeypatch.setattr(cpu_contention, "WINDOW_SECONDS", 0.001)
    monkeypatch.setattr(cpu_contention, "warn", lambda line: (warnings.append(line), enough.set()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with cpu_contention.warn_if_busy(CPU):
        assert enough.wait(60)
    assert len(warnings) == number
    assert "busy" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cuda", 2)])
def test_nothing_is_watched_where_threads_do_not_wait_for_each_other(device, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(threading, "Thread", lambda *_, **__: pytest.fail("a thread was started"))
    with cpu_contention.warn_if_busy(torch.device(device)):
        pass


@pytest.fixture
def asked(monkeypatch):
    """How many threads were asked for; the number stays as it is."""
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


def test_all_commands_that_compute_take_threads_and_watch_the_machine(here, asked, monkeypatch):
    watched = []

    @contextmanager
    def watch(device):
        watched.append(device.type)
        yield

    monkeypatch.setattr(cpu_contention, "warn_if_busy", watch)
    write(here / "picture.png", encoded(picture(40, 32), "PNG"))
    assert run_here(*SMALL, "--n_epochs=1", "--limit_batches=1", "--save=new", "--threads=3") == 0
    assert run_here("evaluate", "--save=run", "--threads=4") == 0
    assert run_here("predict", "picture.png", "--save=run", "--threads=5") == 0
    assert run_here("benchmark", *TINY, "--rounds=0", "--threads=6") == 0
    assert watched == ["cpu"] * 4
    monkeypatch.setattr(
        "commands.export.network.export_network", lambda *_, **__: pytest.fail("no export", pytrace=False)
    )
    with pytest.raises(pytest.fail.Exception, match="no export"):
        run_here("export", "--save=run", "--format=torch", "--threads=7")
    assert asked == [3, 4, 5, 6, 7]


def test_a_run_keeps_its_threads_unless_told_otherwise(tmp_path, asked):
    words = [*SMALL, "--limit_batches=1", f"--save={tmp_path / 'run'}"]
    assert run_here(*words, "--n_epochs=1", "--threads=2") == 0
    assert run_here(f"--save={tmp_path / 'run'}", "--resume", "--n_epochs=2") == 0
    assert run_here(f"--save={tmp_path / 'run'}", "--resume", "--n_epochs=3", "--threads=1") == 0
    assert asked == [2, 2, 1]
    assert json.loads((tmp_path / "run/config.json").read_text())["flags"]["threads"] == 1


def test_runs_that_did_not_record_threads_go_on(copy, asked):
    config = json.loads((copy / "config.json").read_text())
    del config["flags"]["threads"]
    (copy / "config.json").write_text(json.dumps(config))
    assert run_here(f"--save={copy}", "--resume", "--n_epochs=3") == 0
    assert asked == []


@pytest.mark.parametrize("threads", ["0", "1025", "two"])
def test_numbers_of_threads_that_cannot_be_are_refused(threads, tmp_path, capsys):
    assert run_here(*SMALL, f"--save={tmp_path / 'run'}", f"--threads={threads}") == 2
    error = capsys.readouterr().err
    assert f"--threads is '{threads}', but must be a whole number, 1 or more and at most 1,024" in error
    assert error.count("\n") == 1
