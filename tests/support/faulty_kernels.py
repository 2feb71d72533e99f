"""Kernels with a fault each, compiled; prints the faults that are found."""

import torch
import triton
import triton.language as tl

from tests.compile_kernels import compiled, report_of
from tests.support.kernel_uses import rows_of


@triton.jit
def load_narrowly(x, pitch, num_columns, out):
    """A mask that the compiler cannot see to be the same for neighbours."""
    rows, columns = tl.arange(0, 32), tl.arange(0, 64)
    value = tl.load(x + rows[:, None] * pitch + columns[None, :], mask=(columns < num_columns)[None, :], other=0.0)
    tl.store(out + rows, tl.sum(value, 1))


@triton.jit
def add_atomically(x, pitch, out):
    rows, columns = tl.arange(0, 32), tl.arange(0, 64)
    value = tl.load(x + rows[:, None] * pitch + columns[None, :])
    tl.atomic_add(out + rows, tl.sum(value, 1))


@triton.jit
def hold_too_much(x, pitch, out):
    """512 values for each thread."""
    rows, columns = tl.arange(0, 256), tl.arange(0, 64)
    value = tl.load(x + rows[:, None] * pitch + columns[None, :])
    total = tl.sum(value, 0)
    tl.store(out + rows[:, None] * pitch + columns[None, :], value - total[None, :])


def main() -> None:
    x, out = rows_of(torch.float32, 64), torch.zeros(512 * 64)
    with compiled(80) as launched:
        load_narrowly[(1,)](x, x.stride(0), 41, out)
        add_atomically[(1,)](x, x.stride(0), out)
        hold_too_much[(1,)](x, x.stride(0), out, num_warps=1)
    for one in launched:
        print([fault.partition(" ")[2] for fault in report_of(one).faults(80)])


if __name__ == "__main__":
    main()
