"""Memory that runs out: recognise it, and say what to try."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from train.command_line.networks import LARGEST_SMALL_IMAGES
from train.errors import RunError

GB = 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the device or of the host ran out.

    Linux mostly does not refuse host memory but kills the process later; then there is no error.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def memory_of_device(device: torch.device) -> float | None:
    """All memory of a GPU, or of the host for the CPU, in GB of 10^9 bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GB
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return None


@contextmanager
def explained(folder: Path, *, strategy: str, flags: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Turn memory that runs out into one line that says what to try.

    Args:
        folder: Of the run.
        strategy: Of the network.
        flags: Of the run.
        device: Where the network is.

    Raises:
        RunError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"memory ran out with --efficient {strategy} and --batch_size {flags['batch_size']}; {folder} stands at "
            f"the last finished epoch; {what_to_try(strategy=strategy, flags=flags, device=device)}"
        ) from error


def what_to_try(*, strategy: str, flags: Mapping[str, Any], device: torch.device) -> str:
    """Advise a run that did not fit into memory; arguments as in `explained`."""
    smaller = "" if strategy == "buffer" else "--efficient buffer, which takes the least memory, "
    advice = f"try {smaller}--accum_steps above {flags['accum_steps']} or a smaller --batch_size"
    if flags["network"] != "densenet_bc" or flags["image_size"] > LARGEST_SMALL_IMAGES:
        return advice  # the benchmark knows no such network
    network = " ".join(f"--{flag} {flags[flag]}" for flag in ("depth", "growth_rate", "batch_size", "image_size"))
    available = memory_of_device(device)
    budget = f" --budget_gb {available:.1f}" if available else ""
    return f"{advice}; what fits is printed by: python demo.py benchmark {network}{budget}"
