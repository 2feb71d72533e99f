"""Failures that are no fault of this program, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from train.benchmark.step import Case
from train.errors import RunError


@contextmanager
def one_line(variant: str, case: Case) -> Iterator[None]:
    """Turn a lack of memory into a RunError that names the variant, the depth and the batch.

    Linux mostly does not refuse memory but kills the process later; then there is no line.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            what = f"{variant} at L={case.depth} with batches of {case.batch_size}"
            raise RunError(f"{what} does not fit into memory; try a smaller --batch_size") from error
        raise
