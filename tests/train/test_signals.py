"""Signals that ask to stop."""

import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from tests.support.application import ROOT
from train import signals
from train.processes import ProcessGroup
from train.signals import MOST_CHECKS, SIGNALS, GracefulStop, Stopped, checks_to_ask, immediate_stop

# Waits for signals in short steps, and says when it is ready for the first one and the second one.
WAITER = """
import time
from train.signals import GracefulStop
with GracefulStop() as stop:
    print("ready", flush=True)
    while stop._number == 0:
        time.sleep(0.001)
    print("noted", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Restore the handlers after each test, and yield those that it started with."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where nohup has started the tests
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_for_the_check(number, capfd):
    done = []

    def work():
        with GracefulStop() as stop:
            stop.check("before")
            signal.raise_signal(number)
            done.append("the step")
            stop.check("in epoch 3")
            done.append("another step")

    with pytest.raises(Stopped) as stopped:
        work()
    assert done == ["the step"]
    assert str(stopped.value) == f"stopped by {number.name} in epoch 3"
    assert stopped.value.exit_code == 128 + number
    notice = f"\n{number.name}: stopping after the batch in hand; a second signal stops at once\n"
    assert capfd.readouterr() == ("", notice)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_at_once_stop_where_the_program_is(number, capfd):
    with pytest.raises(Stopped) as stopped, immediate_stop():
        signal.raise_signal(number)
    assert str(stopped.value) == f"stopped by {number.name}"
    assert stopped.value.exit_code == 128 + number
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "checks"), [(10.0, 1), (0.06, 1), (0.05, 2), (0.02, 5), (0.001, MOST_CHECKS), (0.0, MOST_CHECKS)]
)
def test_processes_ask_each_other_ten_times_a_second_where_steps_are_fast(seconds, checks):
    assert checks_to_ask(seconds) == checks


class Asking(ProcessGroup):
    """One of two processes; the other one answers with its own numbers."""

    asked = 0
    other = (0, 0, 0)

    def all_reduce_max(self, *values):
        Asking.asked += 1
        return tuple(map(max, values, self.other))


def test_two_processes_with_fast_steps_seldom_ask_each_other_and_stop_together(monkeypatch):
    monkeypatch.setattr(Asking, "asked", 0)
    monkeypatch.setattr(Asking, "other", (0, 1, 10_000))  # whose steps take 10 ms
    asked, answers = [], []
    stop = GracefulStop(Asking(world_size=2))
    for _ in range(25):
        answers.append(stop.check("in a step", due=False))
        asked.append(Asking.asked)
    assert asked == [1] * 10 + [2] * 10 + [3] * 5  # at the first check, and at each tenth after it
    assert answers == [i in (0, 10, 20) for i in range(25)]  # the other one's clock
    monkeypatch.setattr(Asking, "other", (signal.SIGTERM, 0, 10_000))
    for _ in range(5):
        stop.check("in a step")
    with pytest.raises(Stopped, match="in a step"):
        stop.check("in a step")
    with pytest.raises(Stopped, match="after the epoch"):
        stop.check("after the epoch", now=True)


def test_a_process_that_is_alone_hears_a_signal_at_the_next_check(capfd):
    def work():
        with GracefulStop() as stop:
            for _ in range(50):
                stop.check()
            signal.raise_signal(signal.SIGTERM)
            stop.check("in epoch 3")

    with pytest.raises(Stopped, match="in epoch 3"):
        work()


class TakenDown:
    """Gets a signal when the last reference to it goes, where Python drops exceptions."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_while_an_object_is_taken_down_is_not_lost(number, launched, monkeypatch, capfd):
    monkeypatch.setattr(signals, "is_launched", lambda: launched)

    def work():
        with immediate_stop():
            TakenDown(number)
            time.sleep(10)

    with pytest.raises(Stopped, match=f"stopped by {number.name}"):
        work()
    assert capfd.readouterr() == ("", "")


def test_a_signal_that_comes_again_while_one_is_sent_again_is_not_lost(monkeypatch):
    """As on a busy machine, where the thread that sends it is faster."""
    sent = []

    def send_later(number, real=signals._send_later):
        sent.append(number)
        if len(sent) == 1:
            signal.raise_signal(number)
        else:
            real(number)

    monkeypatch.setattr(signals, "_send_later", send_later)

    def work():
        with immediate_stop():
            TakenDown(signal.SIGINT)
            time.sleep(10)

    with pytest.raises(Stopped, match="stopped by SIGINT"):
        work()
    assert sent == [signal.SIGINT, signal.SIGINT]


class Broken:
    def __del__(self):
        raise ZeroDivisionError


def test_other_exceptions_that_are_dropped_are_shown_as_before(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: shown.append(dropped.exc_type))
    before = sys.unraisablehook
    with immediate_stop():
        Broken()
    assert shown == [ZeroDivisionError]
    assert sys.unraisablehook is before


def test_a_signal_that_torchrun_passes_on_as_well_is_one_signal(monkeypatch):
    monkeypatch.setattr(signals, "is_launched", lambda: True)
    with immediate_stop():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(signals, "SAME_SIGNAL_SECONDS", -1)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_processes_stop_when_torchrun_is_gone(monkeypatch):
    monkeypatch.setattr(signals, "is_launched", lambda: True)
    with GracefulStop() as stop:
        stop.check()
        monkeypatch.setattr(signals.os, "getppid", lambda: 1)
        with pytest.raises(Stopped, match="stopped by SIGTERM in epoch 2"):
            stop.check("in epoch 2")


def test_no_signal_stops_nothing(capfd):
    with immediate_stop(), GracefulStop() as stop:
        stop.check("in epoch 1")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("first", "second"), [*zip(SIGNALS, SIGNALS, strict=True), *pairwise((*SIGNALS, SIGNALS[0]))])
def test_the_second_signal_ends_the_process_at_once(first, second):
    with subprocess.Popen(
        [sys.executable, "-c", WAITER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line, number in (("ready\n", first), ("noted\n", second)):
                assert process.stdout.readline() == line
                process.send_signal(number)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + second
    assert error.endswith(f"{second.name} again: stopped at once\n")


@pytest.mark.parametrize("manner", [immediate_stop, GracefulStop])
def test_handlers_are_put_back(manner, handlers):
    def current():
        return {number: signal.getsignal(number) for number in SIGNALS}

    with manner():
        assert all(current()[number] != handlers[number] for number in SIGNALS)
    assert current() == handlers
    with pytest.raises(ZeroDivisionError), manner():
        raise ZeroDivisionError
    assert current() == handlers


def test_a_wait_for_the_step_inside_of_at_once_ends_with_it():
    """As in a run: training waits for the step, and what comes before and after it does not."""
    done = []

    def work():
        with immediate_stop():
            with GracefulStop():
                signal.raise_signal(signal.SIGTERM)
            done.append("the step")
            signal.raise_signal(signal.SIGTERM)
            done.append("another step")

    with pytest.raises(Stopped):
        work()
    assert done == ["the step"]


@pytest.mark.parametrize("manner", [immediate_stop, GracefulStop])
def test_a_signal_that_nohup_ignores_stays_ignored(manner, capfd):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with manner() as stop:
            signal.raise_signal(signal.SIGHUP)
            if stop:
                stop.check("in epoch 1")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert capfd.readouterr() == ("", "")


def test_an_error_that_other_code_makes_of_a_signal_is_the_signal():
    """As Python does where it comes while a class is made during an import."""

    def other_code():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error

    with pytest.raises(Stopped, match="stopped by SIGINT") as stopped, immediate_stop():
        other_code()
    assert stopped.value.exit_code == 130
    with pytest.raises(RuntimeError, match="another error"), immediate_stop():
        raise RuntimeError("another error")


def test_the_signals_of_a_closed_terminal_and_of_schedulers_are_among_them():
    assert {number.name for number in SIGNALS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize("manner", [immediate_stop, GracefulStop])
def test_other_threads_leave_signals_alone(manner, handlers):
    seen = []

    def work():
        with manner():
            seen.append({number: signal.getsignal(number) for number in SIGNALS})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]


def test_stopped_is_no_ordinary_exception():
    """So that no handler of errors takes it for one."""
    assert not issubclass(Stopped, Exception)
    assert issubclass(Stopped, KeyboardInterrupt)
    assert str(Stopped(signal.SIGTERM)) == "stopped by SIGTERM"
