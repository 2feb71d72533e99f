"""Failures that are no fault of this program, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from commands.benchmark.step import Case
from train.errors import RunError
from train.out_of_memory import is_out_of_memory


@contextmanager
def one_line(variant: str, case: Case) -> Iterator[None]:
    """Turn a lack of memory into a RunError that names the variant, the network and the batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            what = f"{variant} at {case.size} with batches of {case.batch_size}"
            raise RunError(f"{what} does not fit into memory; try a smaller --batch_size") from error
        raise
