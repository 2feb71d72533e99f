"""A machine that is too busy for the threads that compute: noticed, and said once.

The threads of OpenMP wait for each other many times in a step, and use up CPU time while they do. Where one of them
shares its CPU with another program, all others wait for it, and a step takes ten to eighty times as long. CPU time does
not show it, because a thread that waits in a loop seems to be hard at work. The kernel also counts how long each thread
was ready to run and had no CPU, and that does.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from train.report import warn

TASKS = Path("/proc/self/task")  # of Linux; elsewhere nothing is said
WINDOW_SECONDS = 10.0
# Of a window, in which a thread waited for a CPU. On two CPUs it is 0.5 with one busy program beside two threads, 0.67
# with two of them, and 0.01 to 0.02 undisturbed.
TOO_MUCH = 0.25


def waiting_times(tasks: Path = TASKS) -> dict[int, float]:
    """Seconds that each computing thread of this process has waited for a CPU so far, by its number.

    Threads that Python has started read files or show how far things are; they are left out. Empty where the system
    does not tell.
    """
    helpers = {thread.native_id for thread in threading.enumerate() if thread is not threading.main_thread()}
    waited = {}
    try:
        for task in tasks.iterdir():
            if int(task.name) not in helpers:
                waited[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # no such files, or a thread has ended meanwhile
        return {}
    return waited


def share_of_waiting(before: Mapping[int, float], after: Mapping[int, float], *, seconds: float) -> float:
    """Share of a time, 0 to 1, in which the thread that waited the most for a CPU did so.

    Args:
        before: Seconds that each thread had waited at the beginning. One that is missing began later.
        after: The same at the end.
        seconds: Between both.
    """
    waited = [total - before.get(thread, 0.0) for thread, total in after.items()]
    return min(1.0, max(0.0, *waited) / seconds) if waited and seconds > 0 else 0.0


def advice(share: float, *, threads: int, environment: Mapping[str, str]) -> str:
    """Say that the machine is too busy for this many threads, and what to try."""
    remedies = [f"fewer --threads (now {threads})"]
    if not any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        remedies.append("OMP_WAIT_POLICY=passive in the environment")
    return (
        f"the CPUs are busy with other work: of the last {WINDOW_SECONDS:.0f} seconds one thread waited {share:.0%} "
        "for a CPU, and the others waited for that thread, which can make every step many times slower; try "
        f"{', or '.join(remedies)}"
    )


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Warn once if the threads that compute have to wait for a CPU. A single thread just gets its share of one."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or not waiting_times():
        yield
        return
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(is_over, threads), name="busy", daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        watch.join()


def _watch(is_over: threading.Event, threads: int) -> None:
    before, start = waiting_times(), time.monotonic()
    while not is_over.wait(WINDOW_SECONDS):
        after, end = waiting_times(), time.monotonic()
        share = share_of_waiting(before, after, seconds=end - start)
        if share >= TOO_MUCH:
            warn(advice(share, threads=threads, environment=os.environ))
            return
        before, start = after, end
