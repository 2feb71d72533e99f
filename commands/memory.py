"""Turn an out-of-memory error into one line that says what to try."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from commands.settings import TrainSettings
from train.errors import RunError
from train.out_of_memory import is_out_of_memory
from train.program_name import PYTHON_WORDS
from train.run.config import CHECKPOINT

GB = 1e9


@contextmanager
def memory_explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error into one line.

    Args:
        advice: Returns what follows "memory ran out" in the line. Called once memory has run out.

    Raises:
        RunError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"memory ran out{advice()}") from error


def larger_machine() -> str:
    """Advice for work whose memory does not depend on the batch."""
    return "; use a machine with more memory"


def smaller_batch(batch_size: int) -> Callable[[], str]:
    """Advice for work on batches without training."""
    if batch_size == 1:
        return lambda: f" with --batch_size 1{larger_machine()}"
    return lambda: f" with --batch_size {batch_size}; try a smaller --batch_size"


def advice_for_training(settings: TrainSettings) -> str:
    """Advice for a training run, with the command line that prints what fits into memory."""
    checkpoint = settings.save / CHECKPOINT
    stands = f"{settings.save} stands at its last checkpoint; " if checkpoint.exists() else ""
    smaller = "" if settings.efficient in (True, "buffer") else "--efficient buffer, which mostly takes the least, "
    network = (
        f"--network {settings.network} --depth {settings.depth} --growth_rate {settings.growth_rate} "
        f"--batch_size {settings.batch_size} --image_size {settings.image_size}"
    )
    available = memory_of_device()
    budget = f" --budget_gb {available:.1f}" if available else ""
    return (
        f" with --efficient {settings.efficient} and --batch_size {settings.batch_size}; {stands}"
        f"try {smaller}--accum_steps above {settings.accum_steps} or a smaller --batch_size; "
        f"what fits is printed by: {' '.join(PYTHON_WORDS)} benchmark {network}{budget}"
    )


def memory_of_device() -> float | None:
    """Total memory of this process's GPU, or of the host, in GB of 10^9 bytes; None where it is unknown."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GB
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return None
