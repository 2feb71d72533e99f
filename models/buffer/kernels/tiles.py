"""How rows are divided among the programs of a kernel, and what all kernels do with a value.

R rows, c columns; a program works on BLOCK_M rows times BLOCK_N columns at a time.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# Three or four for each multiprocessor of a large GPU, so that all run at once, while partial sums stay small. The
# number may not depend on the device: sums would be joined in another order, and equal runs would differ.
PROGRAMS = 512

# Values of a tile, 16 for each thread of 128: more would need so many registers that fewer threads run at once.
TILE = 2048


class Tiles(NamedTuple):
    """A division of rows among programs.

    Attributes:
        grid: Number of programs along columns and along rows.
        num_rows: Rows of a program, a multiple of BLOCK_M; the last one may have fewer.
        constants: BLOCK_M and BLOCK_N.
    """

    grid: tuple[int, int]
    num_rows: int
    constants: dict[str, Any]

    @classmethod
    def of(cls, num_rows: int, num_columns: int) -> "Tiles":
        """Divide rows (R, c) into tiles. All of these programs have at least one row."""
        block_n = min(64, max(16, triton.next_power_of_2(num_columns)))
        block_m = TILE // block_n
        num_tiles, across = triton.cdiv(num_rows, block_m), triton.cdiv(num_columns, block_n)
        of_a_program = triton.cdiv(num_tiles, max(1, PROGRAMS // across))
        return cls(
            (across, triton.cdiv(num_tiles, of_a_program)),
            of_a_program * block_m,
            {"BLOCK_M": block_m, "BLOCK_N": block_n},
        )

    @property
    def num_parts(self) -> int:
        """Number of partial results of a sum over rows."""
        return self.grid[1]


def columns_to_load(num_columns: int, *rows: Tensor) -> int:
    """Return how many columns a kernel that needs c of them may load.

    A multiple of 16 lets the compiler load 16 bytes at a time, whatever c is: it then sees that a vector of values is
    loaded as a whole or not at all. The further columns have to be part of every row.
    """
    rounded = triton.cdiv(num_columns, 16) * 16
    for tensor in rows:
        pitch = tensor.stride(0)  # any number if there is a single row
        if pitch < rounded or pitch % 16 or tensor.storage_offset() % pitch + rounded > pitch:
            return num_columns
    return rounded


@triton.jit
def load_norm(mean_ptr, invstd_ptr, weight_ptr, bias_ptr, columns, column_ok):
    """Load mean, weight * invstd and bias (1, BLOCK_N) of a norm; 0 beyond its last column."""
    mean = tl.load(mean_ptr + columns, mask=column_ok, other=0.0)
    invstd = tl.load(invstd_ptr + columns, mask=column_ok, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=column_ok, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=column_ok, other=0.0)
    return mean[None, :], (weight * invstd)[None, :], bias[None, :]


@triton.jit
def normalise(x, mean, scale, bias):
    """Apply a norm. The mean is subtracted first, because x * scale - mean * scale loses digits if both are large."""
    return (x.to(tl.float32) - mean) * scale + bias


@triton.jit
def relu(u):
    """Apply ReLU, which keeps NaN, as in PyTorch; the maximum of u and 0 would hide it."""
    return tl.where(u <= 0.0, 0.0, u)


@triton.jit
def drop(value, mask_ptr, place, inside, keep_rate):
    """Apply dropout with a mask of bool: divide what is kept by `keep_rate`."""
    return tl.where(tl.load(mask_ptr + place, mask=inside, other=0).to(tl.int1), value / keep_rate, 0.0)
