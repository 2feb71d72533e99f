"""Threads that work together stay within a budget."""

import threading

from data.budget import Budget


def test_what_is_held_is_given_back_after_errors_too():
    budget = Budget(10)
    for _ in range(3):
        try:
            with budget.part() as part:
                part.take(7)
                assert budget.taken == 7
                raise LookupError
        except LookupError:
            assert budget.taken == 0


def test_a_part_that_was_not_taken_gives_nothing_back():
    budget = Budget(10)
    with budget.part():
        pass
    assert budget.taken == 0


def test_threads_hold_no_more_than_the_total_and_a_larger_part_is_held_alone():
    budget, lock = Budget(10), threading.Lock()
    held, most, alone = [], [], []

    def work(amount):
        with budget.part() as part:
            part.take(amount)
            with lock:
                held.append(amount)
                most.append(sum(held))
                alone.append(amount <= 10 or held == [amount])
            with lock:
                held.remove(amount)

    amounts = [1, 3, 5, 25, 10, 4, 6, 0, 12, 2] * 20
    threads = [threading.Thread(target=work, args=[amount]) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(most) == len(amounts)  # each had its turn
    assert all(alone)
    assert max(total for total in most if total not in (12, 25)) <= 10
    assert budget.taken == 0


def test_a_part_waits_until_there_is_enough():
    budget, has_it = Budget(10), threading.Event()

    def wait():
        with budget.part() as part:
            part.take(6)
            has_it.set()

    with budget.part() as part:
        part.take(5)
        thread = threading.Thread(target=wait)
        thread.start()
        assert not has_it.wait(0.05)
    assert has_it.wait(10)
    thread.join()
