"""Work in threads: results in order, computed a few groups ahead, and a limit on what all threads hold at a time."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from threading import Condition
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # groups in work after the one that is waited for; more where groups are too small for all threads
CHUNK_SIZE = 8  # items that a thread takes at once, since handing one over costs as much as decoding a tiny image


def count_threads() -> int:
    """Return the number of CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result], groups: Iterable[Sequence[Item]], *, threads: int
) -> Generator[list[Result]]:
    """Apply `work` to all items in threads, and yield the results group by group.

    An error in `work` is raised here, in place of the results of its group. The threads end with the generator: when
    it is exhausted, closed, or left by an exception, `KeyboardInterrupt` included. Items in work are then finished
    first, and the others are dropped.

    Args:
        work: Called in several threads at a time.
        groups: Items whose results are yielded together. They are taken a few groups ahead of the results. An empty
            group gives an empty list.
        threads: Number of threads, 1 or more.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
    started: deque[list[Future[list[Result]]]] = deque()
    try:
        for group in groups:
            started.append([pool.submit(_each, work, chunk) for chunk in _chunks(group, threads)])
            if len(started) > AHEAD and sum(map(len, started)) > 2 * threads:
                yield _results(started.popleft())
        while started:
            yield _results(started.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(group: Sequence[Item], threads: int) -> Iterator[Sequence[Item]]:
    """Split a group into chunks that are small enough for all threads to have some."""
    size = max(1, min(CHUNK_SIZE, len(group) // threads))
    return (group[start : start + size] for start in range(0, len(group), size))


def _each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _results(futures: list[Future[list[Result]]]) -> list[Result]:
    return list(chain.from_iterable(future.result() for future in futures))


class Budget:
    """An amount, such as bytes of memory, that threads reserve parts of.

    Args:
        total: The amount, above 0.
    """

    def __init__(self, total: int):
        self.total = total
        self.reserved = 0
        self._changed = Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Reserve an amount for a `with` block, after waiting until it is free.

        Args:
            amount: 0 or more. An amount above the total waits until nothing else is reserved.
        """
        amount = min(amount, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self.reserved + amount <= self.total)
            self.reserved += amount
        try:
            yield
        finally:
            with self._changed:
                self.reserved -= amount
                self._changed.notify_all()
