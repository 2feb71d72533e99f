"""Elementwise operations on rows and reductions over them, built from operations of PyTorch.

They know tensors and coefficients, but neither modules nor buffers.

The reductions are means, variances and sums over the rows, for each column, and use the kernels of batch norm. These
read everything once or twice and write only the result, where `torch.var_mean`, or products that are then summed, take
several passes. On a CPU, each thread sums some of the rows in accumulators of its own, and those of all threads lie
side by side in memory. Where accumulators of two threads share a cache line, the threads wait for each other at every
addition: with 120 columns on two threads of an AMD EPYC the kernel takes ten times as long as with 128. So consecutive
rows are joined until they fill whole cache lines, and the sums of the joined rows are added at the end. More rows are
joined where there are few columns, because a thread adds its rows one after the other and the rounding error grows with
their number.

R rows, r of them in a chunk, C or c columns, j rows joined.
"""

from collections.abc import Iterable, Sequence
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from .device import capability_of
from .norms import ChannelNorm, Statistics
from .rows import Scratch, as_any_images

CACHE_LINE = 64 // 4  # 32-bit numbers, in which the kernels accumulate; 64-bit numbers fill two lines
MAX_COLUMNS = 1024  # of joined rows


class Affine(NamedTuple):
    """An affine function of each column: scale * x + shift.

    Attributes:
        scale: (c,).
        shift: (c,).
    """

    scale: Tensor
    shift: Tensor


class LinearGradient(NamedTuple):
    """The gradient with respect to the input x of a norm, given a gradient g: scale * g + slope * x + offset.

    Attributes:
        scale: (c,); None for 1.
        slope: (c,).
        offset: (c,).
    """

    scale: Tensor | None
    slope: Tensor
    offset: Tensor


class ChunkMoments(NamedTuple):
    """Mean and variance of each column of a chunk of rows.

    Attributes:
        num_rows: r.
        mean: (C,), in at least 32 bits.
        variance: (C,), with divisor r.
    """

    num_rows: int
    mean: Tensor
    variance: Tensor


def affine_of(norm: ChannelNorm) -> Affine:
    """Return a norm layer as an affine function of each column."""
    scale = norm.weight * norm.invstd
    return Affine(scale, torch.addcmul(norm.bias, scale, norm.mean, value=-1))


def apply_affine(rows: Tensor, coefficients: Affine, *, out: Tensor) -> Tensor:
    """Compute scale * x + shift for rows (r, c) and write it to `out` (r, c), in its dtype."""
    return torch.addcmul(coefficients.shift, rows, coefficients.scale, out=out)


def affine_relu(rows: Tensor, coefficients: Affine, scratch: Scratch) -> Tensor:
    """Norm and ReLU of rows (r, c), contiguous or not. Both passes call this, so that they agree on every sign."""
    return apply_affine(rows, coefficients, out=scratch.shaped(*rows.shape)).relu_()


def relu_backward(grad: Tensor, activated: Tensor) -> Tensor:
    """Set a gradient to 0, in place, wherever the result of the ReLU is 0."""
    return torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


def linear_gradient(grad: Tensor, rows: Tensor, coefficients: LinearGradient, scratch: Scratch) -> Tensor:
    """Compute scale * g + slope * x + offset for a chunk of g and x, (r, c) each, in their dtype."""
    scale, slope, offset = coefficients
    result = torch.addcmul(offset, rows, slope, out=scratch.shaped(*grad.shape))
    return result.add_(grad) if scale is None else result.addcmul_(grad, scale)


def write_scaled(grad: Tensor, scale: Tensor, *, out: Tensor) -> None:
    """Write grad * scale, of (r, c) and (c,), to `out` (r, c)."""
    torch.mul(grad, scale, out=out)


def add_scaled(grad: Tensor, scale: Tensor, *, out: Tensor) -> None:
    """Add grad * scale, of (r, c) and (c,), to `out` (r, c)."""
    out.addcmul_(grad, scale)


def drop(rows: Tensor, mask: Tensor, keep_rate: float) -> Tensor:
    """Set rows (r, C) to 0 in place where a mask of bool (r, C) is False, and divide the rest by `keep_rate`."""
    # A CPU converts bytes to other numbers in half the time that it takes for bool.
    return rows.mul_(mask.view(torch.uint8)).div_(keep_rate)


def chunk_moments(rows: Tensor) -> ChunkMoments:
    """Compute mean and variance of each column of contiguous rows (r, C)."""
    joined = _joined(rows)
    num_rows, num_columns = rows.shape
    # For 16-bit rows, the kernel returns 32 bits only if it is given running statistics of 32 bits. They are thrown
    # away; with a momentum of 1 their values do not matter.
    unused = joined.new_zeros(2, joined.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32))
    unused_mean, unused_variance = unused
    mean, variance = torch.batch_norm_update_stats(as_any_images(joined), unused_mean, unused_variance, 1.0)
    if joined is not rows:
        means, variances = mean.view(-1, num_columns), variance.view(-1, num_columns)
        variance, mean = torch.var_mean(means, 0, correction=0)
        variance += variances.mean(0)
    return ChunkMoments(num_rows, mean, variance)


def join_moments(chunks: Sequence[ChunkMoments], eps: float) -> Statistics:
    """Join the moments of chunks, which may have any numbers of rows, at least two in all.

    Args:
        chunks: The moments of each chunk.
        eps: Added to the variance.
    """
    num_rows, mean, variance = chunks[0]
    for more, other_mean, other_variance in chunks[1:]:
        num_rows += more
        share = more / num_rows
        difference = other_mean - mean
        mean = torch.lerp(mean, other_mean, share)
        variance = torch.lerp(variance, other_variance, share)
        variance.addcmul_(difference, difference, value=share * (1 - share))
    return Statistics(mean, variance * (num_rows / (num_rows - 1)), (variance + eps).rsqrt())


def sums_of_products(grad: Tensor, rows: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sum grad, and grad * (rows - mean) * invstd, over all rows.

    Args:
        grad: (R, C), contiguous.
        rows: (R, C), contiguous.
        mean: (C,), in at least 32 bits.
        invstd: (C,), in at least 32 bits.

    Returns:
        Both sums, (C,) each, in at least 32 bits.
    """
    joined_grad, joined_rows, num_columns = _joined(grad), _joined(rows), grad.shape[1]
    if joined_grad is not grad:
        num_joined = joined_grad.shape[1] // num_columns
        mean, invstd = mean.repeat(num_joined), invstd.repeat(num_joined)
    _, of_products, of_grad = torch.ops.aten.native_batch_norm_backward.default(
        as_any_images(joined_grad),
        as_any_images(joined_rows),
        None,
        None,
        None,
        mean,
        invstd,
        True,
        0.0,
        [False, True, True],
    )
    if joined_grad is not grad:
        of_grad, of_products = (result.view(-1, num_columns).sum(0) for result in (of_grad, of_products))
    return of_grad, of_products


def add_chunks(chunks: Iterable[tuple[Tensor, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Add up tuples of tensors, one tuple for each chunk, all of the same shapes. May overwrite the first tuple.

    Args:
        chunks: One or more tuples.
        dtype: The dtype of the sums.
    """
    sums: list[Tensor] = []
    for chunk in chunks:
        for total, tensor in zip(sums, chunk, strict=False):
            total.add_(tensor)
        if not sums:
            sums = [tensor.to(dtype) for tensor in chunk]
    return sums


def add_up(chunks: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Add up tensors of one shape, one for each chunk; see `add_chunks`."""
    (total,) = add_chunks(((chunk,) for chunk in chunks), dtype)
    return total


def _joined(rows: Tensor) -> Tensor:
    """View rows (R, C) as (R / j, j * C), with a j that fills whole cache lines; unchanged if there is none."""
    num_rows, num_columns = rows.shape
    num_joined = CACHE_LINE // gcd(CACHE_LINE, num_columns)
    while 2 * num_joined * num_columns <= MAX_COLUMNS and num_rows % (2 * num_joined) == 0:
        num_joined *= 2
    if num_joined == 1 or num_rows % num_joined or rows.device.type != "cpu" or capability_of(rows):
        return rows
    return rows.view(num_rows // num_joined, num_joined * num_columns)
