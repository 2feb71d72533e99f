"""Memory that runs out: say what to try."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from train.errors import RunError
from train.out_of_memory import is_out_of_memory
from train.run.config import CHECKPOINT

GB = 1e9


def memory_of_device() -> float | None:
    """All memory of this process's GPU, or of the host, in GB of 10^9 bytes; None where the system does not tell."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GB
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return None


@contextmanager
def explained(flags: Mapping[str, Any], folder: Path | None = None) -> Iterator[None]:
    """Turn memory that runs out into one line that says what to try.

    Args:
        flags: "batch_size" of a command that trains nothing, nothing for work that no smaller batch helps, or all flags
            of a run. Read when memory has run out.
        folder: Of the run that is trained; None where none is.

    Raises:
        RunError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"memory ran out{_what_happened(folder, flags)}") from error


def _what_happened(folder: Path | None, flags: Mapping[str, Any]) -> str:
    if folder is None:
        return _without_training(flags.get("batch_size"))
    stands = f"{folder} stands at the last finished epoch; " if (folder / CHECKPOINT).exists() else ""
    return (
        f" with --efficient {flags['efficient']} and --batch_size {flags['batch_size']}; {stands}{what_to_try(flags)}"
    )


def _without_training(batch_size: int | None) -> str:
    if batch_size is None:
        return "; use a machine with more memory"
    if batch_size == 1:
        return " with --batch_size 1; use a machine with more memory"
    return f" with --batch_size {batch_size}; try a smaller --batch_size"


def what_to_try(flags: Mapping[str, Any]) -> str:
    """Advise a run of these flags that did not fit into memory."""
    smaller = "" if flags["efficient"] in (True, "buffer") else "--efficient buffer, which mostly takes the least, "
    advice = f"try {smaller}--accum_steps above {flags['accum_steps']} or a smaller --batch_size"
    names = ("network", "depth", "growth_rate", "batch_size", "image_size")
    network = " ".join(f"--{flag} {flags[flag]}" for flag in names)
    available = memory_of_device()
    budget = f" --budget_gb {available:.1f}" if available else ""
    return f"{advice}; what fits is printed by: python demo.py benchmark {network}{budget}"
