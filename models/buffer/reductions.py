"""Means, variances and sums over the rows of a tensor, for each column, by the kernels of batch norm.

They read everything once or twice and write nothing but the result, where `torch.var_mean` or products that are summed
up take several passes. On a CPU each thread adds up some of the rows in numbers of its own, which for all columns of
all threads lie side by side. Where those of two threads share a cache line, the threads wait for each other at every
addition: with 120 columns on two threads of an AMD EPYC the kernel takes ten times as long as with 128. So rows are
joined until they fill whole lines, and the sums of what was joined are added in the end. More of them are joined where
there are few columns, because a thread adds up its rows one after the other, and rounding grows with their number.

R rows, C columns, j rows joined.
"""

from collections.abc import Iterable
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import as_any_maps

CACHE_LINE = 64 // 4  # numbers of 32 bits, in which the kernels add up; of 64 bits they fill two lines
MOST_COLUMNS = 1024


class Moments(NamedTuple):
    """Of each column, (C,) in 32 bits at least.

    Attributes:
        mean: Over all rows.
        variance: With the divisor R.
        unbiased: Variance with the divisor R - 1, as running variances have it.
    """

    mean: Tensor
    variance: Tensor
    unbiased: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Compute them from rows (R, C) without gaps, R at least 2."""
        wide = _joined(rows)
        count, num_columns = rows.shape
        # The kernel returns 32 bits for rows of 16 only if it is given running statistics of 32 bits. These are thrown
        # away; with a weight of 1 for the last step they need no values.
        forgetful = wide.new_zeros(2, wide.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32))
        mean, variance = torch.batch_norm_update_stats(as_any_maps(wide), *forgetful, 1.0)
        if wide is not rows:
            means, variances = mean.view(-1, num_columns), variance.view(-1, num_columns)
            variance, mean = torch.var_mean(means, 0, correction=0)
            variance += variances.mean(0)
        return cls(mean, variance, variance * (count / (count - 1)))


def sums_of_products(
    grad: Tensor, rows: Tensor, mean: Tensor | None = None, invstd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the sums over rows of grad, and of grad * (rows - mean) * invstd.

    Args:
        grad: (R, C) without gaps.
        rows: (R, C) without gaps.
        mean: (C,), in 32 bits at least; None for 0.
        invstd: (C,), in 32 bits at least; None for 1.

    Returns:
        Both sums, (C,) each, in 32 bits at least.
    """
    wide_grad, wide_rows, num_columns = _joined(grad), _joined(rows), grad.shape[1]
    width = wide_grad.shape[1]
    ones = grad.new_ones(width, dtype=torch.promote_types(grad.dtype, torch.float32))
    mean = torch.zeros_like(ones) if mean is None else mean.repeat(width // num_columns)
    invstd = ones if invstd is None else invstd.repeat(width // num_columns)
    _, of_products, of_grad = torch.ops.aten.native_batch_norm_backward.default(
        as_any_maps(wide_grad),
        as_any_maps(wide_rows),
        ones,
        None,
        None,
        mean,
        invstd,
        True,
        0.0,
        [False, True, True],
    )
    if wide_grad is not grad:
        of_grad, of_products = (result.view(-1, num_columns).sum(0) for result in (of_grad, of_products))
    return of_grad, of_products


def _joined(rows: Tensor) -> Tensor:
    """View rows (R, C) as (R / j, j * C), with a j that fills whole cache lines; as they are if there is none."""
    num_rows, num_columns = rows.shape
    num_joined = CACHE_LINE // gcd(CACHE_LINE, num_columns)
    while 2 * num_joined * num_columns <= MOST_COLUMNS and num_rows % (2 * num_joined) == 0:
        num_joined *= 2
    if num_joined == 1 or num_rows % num_joined or rows.device.type != "cpu":
        return rows
    return rows.view(num_rows // num_joined, num_joined * num_columns)


def totals(shares: Iterable[tuple[Tensor, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Add up tuples of tensors, all of the same shapes, in the given type. The first one may be overwritten."""
    result: list[Tensor] = []
    for share in shares:
        for total, tensor in zip(result, share, strict=False):
            total.add_(tensor)
        if not result:
            result = [tensor.to(dtype) for tensor in share]
    return result
