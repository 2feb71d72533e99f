"""Launches of kernels, which can be recorded: what each reads and writes, and how much it computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Product(NamedTuple):
    """A matrix product inside a kernel: (m, k) times (k, n)."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k


class Launch(NamedTuple):
    """A launch of a kernel.

    Attributes:
        name: The kernel.
        reads: Tensors that it reads. Views stand for the values that they show.
        writes: Tensors that it writes. One that it reads and writes is in both.
        repeats: Tensors that it reads more than once, from a cache, with the number of further times.
        product: The product that it computes, if any.
    """

    name: str
    reads: Sequence[Tensor]
    writes: Sequence[Tensor]
    repeats: Sequence[tuple[Tensor, int]] = ()
    product: Product | None = None


_record: Callable[[Launch], None] | None = None


@contextmanager
def recorded(record: Callable[[Launch], None]) -> Iterator[None]:
    """Hand a description of every launch to `record`. Kernels run as usual, except on fake tensors."""
    global _record
    before, _record = _record, record
    try:
        yield
    finally:
        _record = before


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    reads: Sequence[Tensor],
    writes: Sequence[Tensor],
    repeats: Sequence[tuple[Tensor, int]] = (),
    product: Product | None = None,
    **constants: Any,
) -> None:
    """Launch a Triton kernel.

    Args:
        kernel: A function decorated with `triton.jit`.
        grid: Number of programs along each axis.
        arguments: Its run-time arguments; a tensor stands for a pointer to its first value.
        reads: See `Launch`.
        writes: See `Launch`.
        repeats: See `Launch`.
        product: See `Launch`.
        constants: Its compile-time constants, `num_warps` and `num_stages`.
    """
    if _record is not None:
        _record(Launch(kernel.__name__, reads, writes, repeats, product))
    if not isinstance(writes[0], FakeTensor):
        kernel[grid](*arguments, **constants)
