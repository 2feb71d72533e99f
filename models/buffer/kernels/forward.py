"""The forward pass of norms: statistics of rows, and norm with ReLU, pooled or not.

R rows, r of them in a chunk, c columns; N images of H x W pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dropout import NO_DROPOUT, Dropout
from ..norms import ChannelNorm, Statistics
from ..rows import Shape
from ..workspace import MomentsOfChunks
from .launch import launch
from .sums import finish_moments, parts_of_all
from .tiles import Tiles, columns_to_load, drop, load_norm, normalise, relu


class Moments(MomentsOfChunks):
    """Mean and variance of each column of rows (R, c), which come in one or more chunks."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._num_rows = 0

    def add(self, rows: Tensor, dropout: Dropout = NO_DROPOUT, *, out: Tensor | None = None) -> None:
        """Add a chunk of rows; drop values of it, or copy it, in the same pass.

        The moments are those of the values after dropout, as they are stored.

        Args:
            rows: (r, c).
            dropout: Dropout of (r, c). It changes the rows in place if there is no `out`.
            out: Rows (r, c) of any dtype to copy to, for example columns of a buffer.
        """
        num_rows, num_columns = rows.shape
        tiles = Tiles.of(num_rows, num_columns)
        parts = rows.new_empty(tiles.num_parts, 3, num_columns, dtype=torch.float32)
        mask, drops = dropout.mask, dropout.mask is not None
        stored = rows if out is None and drops else out
        launch(
            moments_of_rows, tiles.grid,
            rows, mask, dropout.keep_rate, rows if stored is None else stored, parts,
            num_rows, tiles.num_rows, 0 if stored is None else stored.stride(0),
            reads=[tensor for tensor in (rows, mask) if tensor is not None],
            writes=[parts] if stored is None else [stored, parts],
            PITCH=rows.stride(0), NUM_COLUMNS=num_columns, DROPS=drops, STORES=stored is not None,
            **tiles.constants,
        )  # fmt: skip
        self._parts.append(parts)
        self._num_rows += num_rows

    def result(self, eps: float, *, out: Statistics | None = None) -> Statistics:
        """Return the statistics of all chunks; see `finish_moments`."""
        return finish_moments(parts_of_all(self._parts), self._num_rows, eps, out=out)


def activate(x: Tensor, norm: ChannelNorm, out: Tensor, *, relu: bool = True) -> Tensor:
    """Apply a norm, and ReLU unless it is not wanted.

    Args:
        x: (r, c).
        norm: The norm of c columns.
        out: The result (r, w), w >= c, with zeros from column c on.
        relu: Whether to apply ReLU.

    Returns:
        `out`.
    """
    return _activate(x, norm, out, (1, 1, 1), relu=relu, pools=False)


def activate_and_pool(x: Tensor, norm: ChannelNorm, shape: Shape, out: Tensor) -> Tensor:
    """Apply a norm, ReLU, and average pooling of 2x2 pixels, which leaves out an odd last row or column of an image.

    Args:
        x: (N * H * W, c).
        norm: The norm of c columns.
        shape: (N, H, W).
        out: The result (N * (H // 2) * (W // 2), w), w >= c, with zeros from column c on.

    Returns:
        `out`.
    """
    return _activate(x, norm, out, shape, relu=True, pools=True)


def activate_and_average(x: Tensor, norm: ChannelNorm, shape: Shape) -> Tensor:
    """Apply a norm and ReLU, and average the result over all pixels of an image.

    Args:
        x: (N * H * W, c).
        norm: The norm of c columns.
        shape: (N, H, W).

    Returns:
        (N, c), contiguous, in the dtype of x.
    """
    num_images, height, width = shape
    num_columns = x.shape[1]
    out = x.new_empty(num_images, num_columns)
    tiles = Tiles.of(height * width, num_columns)
    launch(
        average_activated, (num_images, tiles.grid[0]),
        x, x.stride(0), *norm.vectors, out, height * width, num_columns, columns_to_load(num_columns, x),
        reads=[x, *norm.vectors], writes=[out], **tiles.constants,
    )  # fmt: skip
    return out


def _activate(x: Tensor, norm: ChannelNorm, out: Tensor, shape: Shape, *, relu: bool, pools: bool) -> Tensor:
    num_columns = x.shape[1]
    tiles = Tiles.of(*out.shape)
    _, height, width = shape
    launch(
        activate_rows, tiles.grid,
        x, x.stride(0), *norm.vectors, out, out.stride(0),
        out.shape[0], tiles.num_rows, num_columns, columns_to_load(num_columns, x), out.shape[1], height, width,
        reads=[x, *norm.vectors], writes=[out], RELU=relu, POOLS=pools, **tiles.constants,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_rows"])
def moments_of_rows(
    rows_ptr, mask_ptr, keep_rate, out_ptr, parts_ptr, num_rows, rows_per_program, out_pitch,
    PITCH: tl.constexpr, NUM_COLUMNS: tl.constexpr, DROPS: tl.constexpr, STORES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write mean, sum of squared differences and number of rows, (P, 3, c), of each program's rows.

    The few widths of what is appended to a buffer are constants, so that the compiler knows how they are aligned.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < NUM_COLUMNS
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    # Sums of large means lose digits, so means are taken from a value near them.
    origin = tl.load(rows_ptr + first.to(tl.int64) * PITCH + columns, mask=column_ok, other=0.0).to(tl.float32)
    if DROPS:
        tl.debug_barrier()  # a warp may drop values of this row in place before another has read them
    # Welford's update, for each place of a tile on its own; the places are joined at the end.
    count = tl.zeros((BLOCK_M, 1), tl.float32)
    means = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    m2s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
        row_ok = rows < last
        inside = row_ok & column_ok[None, :]
        value = tl.load(rows_ptr + rows * PITCH + columns[None, :], mask=inside, other=0.0)
        if DROPS:
            value = drop(value.to(tl.float32), mask_ptr, rows * NUM_COLUMNS + columns[None, :], inside, keep_rate)
        if STORES:
            value = value.to(tl.float32).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + rows * out_pitch + columns[None, :], value, mask=inside)
        value = value.to(tl.float32) - origin[None, :]
        count += row_ok.to(tl.float32)
        difference = tl.where(row_ok, value - means, 0.0)
        means += difference * (1.0 / tl.maximum(count, 1.0))
        m2s += difference * (value - means)
    total = (last - first).to(tl.float32)
    mean = tl.sum(means * count, 0) / total
    difference = means - mean[None, :]
    m2 = tl.sum(m2s + difference * difference * count, 0)
    part = parts_ptr + tl.program_id(1) * 3 * NUM_COLUMNS + columns
    tl.store(part, origin + mean, mask=column_ok)
    tl.store(part + NUM_COLUMNS, m2, mask=column_ok)
    tl.store(part + 2 * NUM_COLUMNS, tl.zeros((BLOCK_N,), tl.float32) + total, mask=column_ok)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "height", "width"])
def activate_rows(
    x_ptr, pitch, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, out_ptr, out_pitch,
    num_rows, rows_per_program, num_columns, num_loaded, num_stored, height, width,
    RELU: tl.constexpr, POOLS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a norm of rows, with ReLU, and 2x2 average pooling of images with H x W pixels. R rows are written."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < num_columns
    mean, scale, bias = load_norm(mean_ptr, invstd_ptr, weight_ptr, bias_ptr, columns, column_ok)
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    for start in range(first, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_ok = (rows < last)[:, None]
        loaded = row_ok & (columns < num_loaded)[None, :]
        source = rows
        if POOLS:
            down, across = height // 2, width // 2
            source = (rows // (down * across) * height + rows // across % down * 2) * width + rows % across * 2
        place = source.to(tl.int64)[:, None] * pitch + columns[None, :]
        a = normalise(tl.load(x_ptr + place, mask=loaded, other=0.0), mean, scale, bias)
        if RELU:
            a = relu(a)
        if POOLS:
            for i in tl.static_range(1, 4):
                there = place + (i // 2 * width + i % 2) * pitch
                a += relu(normalise(tl.load(x_ptr + there, mask=loaded, other=0.0), mean, scale, bias))
            a *= 0.25
        # A column that is only read to fill a vector holds any value, perhaps NaN.
        a = tl.where(column_ok[None, :], a, 0.0).to(out_ptr.dtype.element_ty)
        stored = row_ok & (columns < num_stored)[None, :]
        tl.store(out_ptr + rows.to(tl.int64)[:, None] * out_pitch + columns[None, :], a, mask=stored)


@triton.jit(do_not_specialize=["num_pixels", "num_columns"])
def average_activated(
    x_ptr, pitch, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, out_ptr, num_pixels, num_columns, num_loaded,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the mean of norm and ReLU over the pixels of one image."""
    image = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < num_columns
    mean, scale, bias = load_norm(mean_ptr, invstd_ptr, weight_ptr, bias_ptr, columns, column_ok)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, num_pixels, BLOCK_M):
        pixels = start + tl.arange(0, BLOCK_M)
        pixel_ok = (pixels < num_pixels)[:, None]
        place = (image * num_pixels + pixels)[:, None] * pitch + columns[None, :]
        x = tl.load(x_ptr + place, mask=pixel_ok & (columns < num_loaded)[None, :], other=0.0)
        sums += tl.where(pixel_ok, relu(normalise(x, mean, scale, bias)), 0.0)
    average = tl.sum(sums, 0) / num_pixels
    tl.store(out_ptr + image * num_columns + columns, average.to(out_ptr.dtype.element_ty), mask=column_ok)
