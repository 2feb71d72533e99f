"""Work in threads whose results come in order, a few groups ahead of whoever takes them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # groups that are worked on beyond the one that is waited for; more where they are too small for all threads
TOGETHER = 8  # items that a thread takes at once, since each handing over costs as much as decoding a tiny image


def count_threads() -> int:
    """The CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result], groups: Iterable[Sequence[Item]], *, threads: int
) -> Iterator[list[Result]]:
    """Apply `work` to all items in threads, and yield the results group by group.

    What `work` raises is raised here, in place of its group. The threads end with the iterator: when it is exhausted,
    closed, or left by an exception, a `KeyboardInterrupt` too. Items that are being worked on are then finished first.

    Args:
        work: Called in several threads at a time.
        groups: Taken a few ahead of the results. Empty ones give empty lists.
        threads: 1 or more.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
    started: deque[list[Future]] = deque()
    try:
        for group in groups:
            started.append([pool.submit(_each, work, some) for some in _cut(group, threads)])
            if len(started) > AHEAD and sum(map(len, started)) > 2 * threads:
                yield _results(started.popleft())
        while started:
            yield _results(started.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(group: Sequence[Item], threads: int) -> Iterator[Sequence[Item]]:
    """Cut a group into pieces that are small enough for all threads to have some."""
    size = max(1, min(TOGETHER, len(group) // threads))
    return (group[start : start + size] for start in range(0, len(group), size))


def _each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]


def _results(futures: list[Future]) -> list[Result]:
    return list(chain.from_iterable(future.result() for future in futures))
