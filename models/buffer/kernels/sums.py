"""Partial results of sums over rows, joined by one more kernel.

A program of a kernel sums some of the rows and writes its part of the result to memory of its own. The parts are then
joined in an order that depends on their number only. There are no atomic additions, whose order changes from run to
run, so equal launches give equal bits.

P parts, R rows, c columns.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..norms import ChannelNorm, Statistics
from .launch import launch

# A program loads this many parts of this many columns at a time. Each load waits for memory, so that few large ones
# take less time than many small ones; P is seldom above 512.
BLOCK: dict[str, Any] = {"BLOCK_P": 128, "BLOCK_N": 16, "num_warps": 8}


def finish_moments(parts: Tensor, num_rows: int, eps: float, *, out: Statistics | None = None) -> Statistics:
    """Join the moments of parts of the rows by the formula of Chan, Golub and LeVeque.

    Args:
        parts: (P, 3, c): mean, sum of squared differences from that mean, and number of rows, of each part and column.
            Parts follow each other at any distance, and each has at least one row.
        num_rows: R, of all parts together, at least 2.
        eps: Added to the variance.
        out: Where to write the statistics, (c,) each; None for new memory.

    Returns:
        The statistics.

    References:
        Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    num_parts, _, num_columns = parts.shape
    out = out or Statistics(*parts.new_empty(3, num_columns))
    launch(
        join_moments, _grid(num_columns),
        parts, parts.stride(0), *out, num_parts, num_columns, num_rows, eps,
        reads=[parts], writes=[*out], **BLOCK,
    )  # fmt: skip
    return out


def finish_sums(parts: Tensor) -> Tensor:
    """Add up parts (P, ...) of float32, each of them contiguous, at any distance from each other."""
    out = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
    launch(
        join_sums, _grid(out.numel()),
        parts, parts.stride(0), out, parts.shape[0], out.numel(),
        reads=[parts], writes=[out], **BLOCK,
    )  # fmt: skip
    return out


def finish_reader(
    parts: Tensor, norm: ChannelNorm, collected: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Add up the sums of a norm's backward pass; these are the gradients of its bias and its weight.

    Args:
        parts: (P, 2, c): sums of g, the gradient of the norm's result, and of g * (x - mean), for each column. Parts
            follow each other at any distance.
        norm: The norm.
        collected: A and D, (C,) each, C >= c, of a norm that reads feature maps of a buffer and uses the statistics of
            the batch: weight * invstd * total is added to A, and weight * invstd^2 * product to D.

    Returns:
        total = sum(g), and product = sum(g * (x - mean)) * invstd, (c,) each.
    """
    num_parts, _, num_columns = parts.shape
    out = parts.new_empty(2, num_columns)
    collects = collected is not None
    a, d = (values[:num_columns] for values in collected or (out[0], out[1]))
    launch(
        join_reader, _grid(num_columns),
        parts, parts.stride(0), norm.weight, norm.invstd, out, a, d, num_parts, num_columns,
        reads=[parts, norm.weight, norm.invstd, *([a, d] if collects else [])],
        writes=[out, *([a, d] if collects else [])],
        COLLECTS=collects, **BLOCK,
    )  # fmt: skip
    total, product = out
    return total, product


def parts_of_all(chunks: list[Tensor]) -> Tensor:
    """Join the parts of all chunks, (P1, ...), (P2, ...) and so on; those of a single chunk are not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _grid(num_columns: int) -> tuple[int]:
    return (triton.cdiv(num_columns, BLOCK["BLOCK_N"]),)


@triton.jit(do_not_specialize=["num_parts", "num_rows"])
def join_moments(
    parts_ptr, stride, mean_ptr, unbiased_ptr, invstd_ptr, num_parts, num_columns, num_rows, eps,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write mean, unbiased variance and 1 / sqrt(variance + eps), (c,) each, of parts (P, 3, c)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < num_columns
    # Means are taken from that of the first part, because a sum of large means would lose digits.
    origin = tl.load(parts_ptr + columns, mask=column_ok, other=0.0)
    count = tl.zeros((BLOCK_N,), tl.float32)
    mean = tl.zeros((BLOCK_N,), tl.float32)
    m2 = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        parts = first + tl.arange(0, BLOCK_P)
        mask = (parts < num_parts)[:, None] & column_ok[None, :]
        place = parts_ptr + parts.to(tl.int64)[:, None] * stride + columns[None, :]
        counts = tl.load(place + 2 * num_columns, mask=mask, other=0.0)
        means = tl.load(place, mask=mask, other=0.0) - origin[None, :]
        m2s = tl.load(place + num_columns, mask=mask, other=0.0)
        block_count = tl.sum(counts, 0)
        block_mean = tl.sum(means * counts, 0) / tl.maximum(block_count, 1.0)
        difference = means - block_mean[None, :]
        block_m2 = tl.sum(m2s + difference * difference * counts, 0)
        share = block_count / tl.maximum(count + block_count, 1.0)
        delta = block_mean - mean
        mean += delta * share
        m2 += block_m2 + delta * delta * share * count
        count += block_count
    tl.store(mean_ptr + columns, origin + mean, mask=column_ok)
    tl.store(unbiased_ptr + columns, m2 / (num_rows - 1), mask=column_ok)
    tl.store(invstd_ptr + columns, 1.0 / tl.sqrt_rn(m2 / num_rows + eps), mask=column_ok)


@triton.jit(do_not_specialize=["num_parts"])
def join_sums(parts_ptr, stride, out_ptr, num_parts, num_columns, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write the sum (c,) of parts (P, c)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = _sum_of_parts(parts_ptr, stride, num_parts, num_columns, columns, BLOCK_P, BLOCK_N)
    tl.store(out_ptr + columns, total, mask=columns < num_columns)


@triton.jit(do_not_specialize=["num_parts"])
def join_reader(
    parts_ptr, stride, weight_ptr, invstd_ptr, out_ptr, a_ptr, d_ptr, num_parts, num_columns,
    COLLECTS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write total and product (2, c) of parts (P, 2, c), and add them to A and D if a buffer collects them."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < num_columns
    total = _sum_of_parts(parts_ptr, stride, num_parts, num_columns, columns, BLOCK_P, BLOCK_N)
    product = _sum_of_parts(parts_ptr + num_columns, stride, num_parts, num_columns, columns, BLOCK_P, BLOCK_N)
    invstd = tl.load(invstd_ptr + columns, mask=column_ok, other=0.0)  # after the sums, which need all registers
    product *= invstd
    tl.store(out_ptr + columns, total, mask=column_ok)
    tl.store(out_ptr + num_columns + columns, product, mask=column_ok)
    if COLLECTS:
        scale = tl.load(weight_ptr + columns, mask=column_ok, other=0.0) * invstd
        a = tl.load(a_ptr + columns, mask=column_ok, other=0.0)
        d = tl.load(d_ptr + columns, mask=column_ok, other=0.0)
        tl.store(a_ptr + columns, a + scale * total, mask=column_ok)
        tl.store(d_ptr + columns, d + scale * invstd * product, mask=column_ok)


@triton.jit
def _sum_of_parts(parts_ptr, stride, num_parts, num_columns, columns, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add up some columns of parts (P, c)."""
    sums = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        parts = first + tl.arange(0, BLOCK_P)
        mask = (parts < num_parts)[:, None] & (columns < num_columns)[None, :]
        sums += tl.load(parts_ptr + parts.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    return tl.sum(sums, 0)
