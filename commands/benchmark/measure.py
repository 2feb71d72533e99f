"""Memory and time of a function.

Memory is all that tensors hold and all that operators allocate temporarily. On a GPU the allocator counts it. On a CPU
the profiler records every call of the allocator. Compared with a TorchDispatchMode that holds weak references to the
storages of all outputs, which the tests of this project also use, at L=100 k=12 with batches of 16:

- The profiler sees temporaries inside operators, which are no outputs.
- It needs no list of tensors to leave out: memory that was allocated earlier is not in its records.
- Its cost was less than the difference between repeated steps; the mode made a step 30 to 140 % slower.
- Both agree on the bytes kept after a forward pass, except for the buffers that the mode counts as outputs of in-place
  operations (14 kB of 557 MB), and on the peak of the naive step to 0.005 %.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch.autograd.profiler import profile

from commands.benchmark.step import Case, Step
from train.errors import RunError
from train.out_of_memory import is_out_of_memory
from train.terminal import progress

Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """Bytes above those that were alive at the start.

    Attributes:
        peak: The most bytes that were alive at one moment.
        kept: Bytes alive at the end, including the result of the function.
        reserved: The most that the GPU's allocator held, including all that was there at the start; None on a CPU.
    """

    peak: int
    kept: int
    reserved: int | None = None


def memory_of(function: Callable[[], Result], device: torch.device) -> tuple[Result, Memory]:
    """Call a function; return its result and the memory that it took on the device."""
    with _no_collection():
        return _memory_on_gpu(function, device) if device.type == "cuda" else _memory_on_cpu(function)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing earlier allocations in the middle of a measurement."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _memory_on_cpu(function: Callable[[], Result]) -> tuple[Result, Memory]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints that there is no GPU
    with profile(profile_memory=True) as profiler:
        result = function()
    # The profiler's own summary adds up the records of each operator, which hides a peak inside one.
    alive = [0, *_bytes_alive(profiler.kineto_results.experimental_event_tree())]
    return result, Memory(peak=max(alive), kept=alive[-1])


def _bytes_alive(roots: Sequence[Any]) -> Iterator[int]:
    """Go through the records of a profiler; yield the bytes that are alive after each call of the allocator.

    A block that is freed here but was allocated earlier is left out. The profiler reports such a block if it knows the
    size from an earlier measurement.
    """
    sizes: dict[int, int] = {}  # by address
    alive = 0
    for record in (event.extra_fields for event in _in_time(roots) if event.name == "[memory]"):
        if record.alloc_size > 0:
            sizes[record.ptr] = record.alloc_size
            alive += record.alloc_size
        else:
            alive -= sizes.pop(record.ptr, 0)
        yield alive


def _in_time(roots: Sequence[Any]) -> list[Any]:
    """All events of a forest, in the order in which they began."""
    events, found = [*roots], []
    while events:
        event = events.pop()
        found.append(event)
        events += event.children
    return sorted(found, key=lambda event: event.start_time_ns)


def _memory_on_gpu(function: Callable[[], Result], device: torch.device) -> tuple[Result, Memory]:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    return result, Memory(
        peak=torch.cuda.max_memory_allocated(device) - before,
        kept=torch.cuda.memory_allocated(device) - before,
        reserved=torch.cuda.max_memory_reserved(device),
    )


def memory_of_step(step: Step) -> Memory:
    """Measure the peak of a whole step, and the bytes that are kept for the backward pass."""
    kept = memory_of(step.forward, step.device)[1].kept
    whole = memory_of(step, step.device)[1]
    return Memory(peak=whole.peak, kept=kept, reserved=whole.reserved)


def peak_of_step(step: Step) -> int:
    """Measure the peak of a step in bytes."""
    if step.device.type == "cuda":
        step()  # the first step allocates workspaces that stay
    return memory_of(step, step.device)[1].peak


class Timed(Protocol):
    """Something that can be called and timed."""

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        ...

    def __call__(self) -> object:
        """Run it, without waiting for the device."""
        ...


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Call a function; return the seconds until the device has finished."""
    _wait_for(device)
    start = time.perf_counter()
    function()
    _wait_for(device)
    return time.perf_counter() - start


def host_seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Call a function on a device that has nothing to do; return the seconds until the call returns.

    On a GPU that is the time in which Python gives the device its work, unless there is so much of it that Python has
    to wait: the device keeps about a thousand kernels in its queue.
    """
    _wait_for(device)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_seconds(steps: Sequence[Timed], *, rounds: int) -> list[list[float]]:
    """Time steps in turns; return the seconds of each step in all rounds.

    Every second round goes backwards, so that no step always follows the same one.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number in progress(_turns(len(steps), rounds), "time", total=len(steps) * rounds):
        seconds[number].append(seconds_of(steps[number], steps[number].device))
    return seconds


def _turns(count: int, rounds: int) -> Iterator[int]:
    for turn in range(rounds):
        yield from range(count) if turn % 2 == 0 else reversed(range(count))


def cells_of(values: Sequence[float], form: str) -> list[str]:
    """Format the median of measured values, and the smallest and the largest of them, as two cells of a table."""
    return [f"{statistics.median(values):{form}}", f"({min(values):{form}} - {max(values):{form}})"]


def columns_of(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return the median, the smallest and the largest of measured values as columns of a CSV file, or None for each."""
    kinds = (("median", statistics.median), ("min", min), ("max", max))
    return {f"{name}_{kind}": pick(values) if values else None for kind, pick in kinds}


@contextmanager
def memory_errors_as_one_line(variant: str, case: Case) -> Iterator[None]:
    """Turn an out-of-memory error into a RunError that names the variant, the network and the batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            step = f"{variant} at {case.size} with batches of {case.batch_size}"
            raise RunError(f"{step} does not fit into memory; try a smaller --batch_size") from error
        raise
