"""Results come in order, no thread outlives the generator however it ends, and threads stay within a budget."""

import os
import signal
import threading
import time

import pytest

from data.threads import AHEAD, CHUNK_SIZE, Budget, count_threads, in_order
from tests.support.synthetic_images import data_threads
from train.signals import Stopped, immediate_stop

GROUPS = [[*range(20)], [], [20], [*range(21, 50)], []]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert data_threads() == []


def double(number):
    time.sleep((number * 7919 % 5) / 5000)  # so that threads overtake each other
    return 2 * number


@pytest.mark.parametrize("threads", [1, 2, 5, 40])
def test_results_come_in_order_group_by_group(threads):
    expected = [[2 * number for number in group] for group in GROUPS]
    assert list(in_order(double, GROUPS, threads=threads)) == expected
    assert list(in_order(double, (group for group in GROUPS), threads=threads)) == expected
    assert list(in_order(double, [], threads=threads)) == []


@pytest.mark.parametrize(("size", "threads", "ahead"), [(16, 2, AHEAD), (100, 2, AHEAD), (1, 2, 4), (1, 4, 8)])
def test_no_more_groups_are_taken_than_are_needed_to_keep_threads_busy(size, threads, ahead):
    taken = []

    def groups():
        for number in range(50):
            taken.append(number)
            yield [number] * size

    results = in_order(double, groups(), threads=threads)
    for number in range(20):
        assert next(results) == [2 * number] * size
        assert len(taken) == number + 1 + ahead
    results.close()


def test_all_threads_work_at_once():
    together = threading.Barrier(4)
    assert list(in_order(lambda _: together.wait(timeout=10), [range(4)], threads=4)) != []
    assert list(in_order(lambda _: together.wait(timeout=10), [[0], [1], [2], [3]], threads=4)) != []


def fail_at(bad):
    def work(number):
        if number == bad:
            raise LookupError(f"item {number}")
        return double(number)

    return work


def test_an_error_comes_in_place_of_its_group_and_ends_the_threads():
    results = in_order(fail_at(30), GROUPS, threads=3)
    assert [next(results) for _ in range(3)] == [[2 * n for n in range(20)], [], [40]]
    with pytest.raises(LookupError, match="item 30"):
        next(results)
    assert data_threads() == []


def test_closing_drops_what_has_not_begun():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.01)
        return number

    results = in_order(work, [[0], range(1000), range(1000), range(1000)], threads=2)
    next(results)
    results.close()
    assert data_threads() == []
    assert len(begun) <= 1 + 4 * CHUNK_SIZE


def test_an_error_of_whoever_takes_the_results_ends_the_threads():
    def take():
        for _ in in_order(double, GROUPS, threads=2):
            raise LookupError

    with pytest.raises(LookupError):
        take()
    assert data_threads() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0, 0.1])
def test_a_signal_ends_the_threads_at_once(number, delay):
    """Both while items are handed to threads and while results are awaited."""
    begun = threading.Event()

    def work(item):
        begun.set()
        time.sleep(0.02)

    def send():
        begun.wait()
        time.sleep(delay)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    start = time.perf_counter()
    with pytest.raises(Stopped), immediate_stop():
        list(in_order(work, [range(2000)] * 5, threads=2))
    # All items would take 100 s. A thread that was just being started at the signal ends too, but without a join.
    while data_threads() and time.perf_counter() - start < 5:
        time.sleep(0.01)
    sender.join()
    assert time.perf_counter() - start < 5


def test_as_many_threads_as_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 5}, raising=False)
    assert count_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count_threads() == os.cpu_count()


def test_an_amount_is_given_back_after_an_error_too():
    budget = Budget(10)

    def fail():
        with budget.reserve(7):
            assert budget.reserved == 7
            raise LookupError

    for _ in range(3):
        with pytest.raises(LookupError):
            fail()
        assert budget.reserved == 0


def test_threads_reserve_no_more_than_the_total_and_a_larger_amount_is_reserved_alone():
    budget, lock = Budget(10), threading.Lock()
    reserved, totals, alone = [], [], []

    def work(amount):
        with budget.reserve(amount):
            with lock:
                reserved.append(amount)
                totals.append(sum(reserved))
                alone.append(amount <= 10 or reserved == [amount])
            with lock:
                reserved.remove(amount)

    amounts = [1, 3, 5, 25, 10, 4, 6, 0, 12, 2] * 20
    threads = [threading.Thread(target=work, args=[amount]) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(totals) == len(amounts)  # each had its turn
    assert all(alone)
    assert max(total for total in totals if total not in (12, 25)) <= 10
    assert budget.reserved == 0


def test_a_thread_waits_until_there_is_enough():
    budget, has_it = Budget(10), threading.Event()

    def wait():
        with budget.reserve(6):
            has_it.set()

    with budget.reserve(5):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not has_it.wait(0.05)
    assert has_it.wait(10)
    thread.join()
