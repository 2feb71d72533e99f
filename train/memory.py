"""Memory that runs out: recognise it, and say what to try."""

import os
from contextlib import suppress

import torch

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


def what_to_try(*, strategy: str, batch_size: int, depth: int, growth_rate: int, device: torch.device) -> str:
    """Advise a run that did not fit into memory."""
    smaller = "" if strategy == "buffer" else "--efficient buffer, which takes the least memory, or "
    available = memory_of_device(device)
    network = f"--depth {depth} --growth_rate {growth_rate} --batch_size {batch_size}"
    budget = f" --budget_gb {available:.1f}" if available else ""
    return f"try {smaller}a smaller --batch_size; what fits is printed by: python demo.py benchmark {network}{budget}"
