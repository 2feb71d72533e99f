"""Notice that other programs keep the CPUs busy, and warn once.

The threads of OpenMP wait for each other many times in a step, and spend CPU time while they wait. Where one of them
shares its CPU with another program, all others wait for it, and a step takes ten to eighty times as long. CPU time does
not show it, because a thread that waits in a loop seems to be working. The kernel also counts how long each thread was
ready to run without getting a CPU, and that shows it.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from train.terminal import warn

TASKS = Path("/proc/self/task")  # on Linux; elsewhere there is no warning
WINDOW_SECONDS = 10.0
# Fraction of a window in which a thread waited for a CPU. On two CPUs it is 0.5 with one busy program beside two
# threads, 0.67 with two of them, and 0.01 to 0.02 undisturbed.
TOO_MUCH = 0.25


@dataclass(frozen=True)
class Reading:
    """Times in seconds that the scheduler has counted for this process so far.

    Attributes:
        clock: Time of the reading.
        process: CPU time of the whole process, including threads that have ended.
        ran: CPU time of each computing thread, by its number.
        waited: Time in which each of them was ready to run and had no CPU.
    """

    clock: float
    process: float
    ran: dict[int, float]
    waited: dict[int, float]


def read_scheduler(tasks: Path = TASKS) -> Reading | None:
    """Read the scheduler's figures; return None where the system has none.

    Threads that Python has started are left out. They do not compute, but read files or draw progress bars.

    Args:
        tasks: The folder in which the system describes the threads of this process.
    """
    helpers = {thread.native_id for thread in threading.enumerate() if thread is not threading.main_thread()}
    ran, waited = {}, {}
    try:
        for task in tasks.iterdir():
            if int(task.name) not in helpers:
                figures = (task / "schedstat").read_text().split()
                ran[int(task.name)], waited[int(task.name)] = int(figures[0]) / 1e9, int(figures[1]) / 1e9
    except (OSError, ValueError, IndexError):  # no such files, or a thread has ended meanwhile
        return None
    return Reading(time.perf_counter(), time.process_time(), ran, waited)


def fraction_of_waiting(before: Reading, after: Reading) -> float:
    """Return the fraction of time in which the thread that waited most had no CPU because of other programs.

    Waiting for other threads of this process, such as those that decode images, is not counted.
    """
    ran = sum(total - before.ran.get(thread, 0.0) for thread, total in after.ran.items())
    waited = max((total - before.waited.get(thread, 0.0) for thread, total in after.waited.items()), default=0.0)
    by_itself = max(0.0, after.process - before.process - ran)
    return min(1.0, max(0.0, waited - by_itself) / (after.clock - before.clock))


def advice(fraction: float, *, threads: int, environment: Mapping[str, str]) -> str:
    """Return a warning that the machine is too busy for this many threads, with advice."""
    remedies = [f"fewer --threads (now {threads})"]
    if not any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        remedies.append("OMP_WAIT_POLICY=passive in the environment")
    return (
        f"the CPUs are busy with other work: of the last {WINDOW_SECONDS:.0f} seconds one thread waited {fraction:.0%} "
        "for a CPU, and the others waited for that thread, which can make every step many times slower; try "
        f"{', or '.join(remedies)}"
    )


@contextmanager
def warn_if_busy(device: torch.device) -> Iterator[None]:
    """Warn once if the computing threads have to wait for a CPU because of other programs.

    There is no warning on other devices, nor for a single thread, which no other thread waits for.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or read_scheduler() is None:
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
    before = read_scheduler()
    while not is_over.wait(WINDOW_SECONDS):
        after = read_scheduler()
        fraction = fraction_of_waiting(before, after) if before and after else 0.0
        if fraction >= TOO_MUCH:
            warn(advice(fraction, threads=threads, environment=os.environ))
            return
        before = after
