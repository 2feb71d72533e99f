"""The backward pass of norms: sums over rows, and gradients of their input.

With g, the gradient of a norm's result where ReLU let it pass and 0 elsewhere, total = sum(g) and
product = sum(g * (x - mean)) * invstd, the gradient of the input x is

    weight * invstd * (g - total / R - (x - mean) * invstd * product / R)

or only weight * invstd * g if the norm does not use the statistics of the batch. Many norms read the feature maps of a
buffer. Their weight * invstd * g are added to a gradient buffer G; what goes through the statistics, which all of them
share, is left to the end, when G - A / R - (x - mean) * D / R is the gradient. `sums.finish_reader` collects A and D.

R rows, r of them in a chunk, c columns; N images of H x W pixels.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dropout import NO_DROPOUT, Dropout
from ..norms import ChannelNorm
from ..rows import Shape
from .launch import launch
from .sums import finish_reader, parts_of_all
from .tiles import Tiles, columns_to_load, drop, load_norm, normalise

# What a row of a gradient belongs to: a pixel, 2x2 pixels that were averaged, or an image whose pixels all were.
Source = Literal["pixel", "2x2", "image"]


class NormSums:
    """The sums of a norm's backward pass over rows, which come in one or more chunks.

    The pass over a chunk that sums g also makes use of it. `x` is the input of the norm (r, c), and `grad` the gradient
    of its result after ReLU, whose rows may be wider.

    Args:
        norm: The norm.
        relu: Whether ReLU follows it; without ReLU, g is `grad` as it is.
    """

    def __init__(self, norm: ChannelNorm, *, relu: bool = True):
        self._norm = norm
        self._relu = relu
        self._parts: list[Tensor] = []

    def mask(self, grad: Tensor, x: Tensor) -> None:
        """Turn `grad` (r, w), w >= c, into g, in place."""
        self._add(grad, x, grad, "pixel", (1, 1, 1), scales=False, adds=False)

    def add_to(self, gradients: Tensor, grad: Tensor, x: Tensor, *, is_first: bool = False) -> None:
        """Add weight * invstd * g to `gradients` (r, c), which are overwritten if this is the first of their readers.

        Columns of their rows after c may change.

        Args:
            gradients: Rows of G.
            grad: (r, w), w >= c.
            x: Rows of the buffer.
            is_first: Whether to overwrite.
        """
        self._add(grad, x, gradients, "pixel", (1, 1, 1), scales=True, adds=not is_first)

    def add_pooled_to(
        self, gradients: Tensor, grad: Tensor, x: Tensor, shape: Shape, *, is_first: bool = False
    ) -> None:
        """Do the same for images (N, H, W) whose 2x2 pixels were averaged: `grad` is (N * (H // 2) * (W // 2), w)."""
        self._add(grad, x, gradients, "2x2", shape, scales=True, adds=not is_first)

    def add_averaged_to(
        self, gradients: Tensor, grad: Tensor, x: Tensor, shape: Shape, *, is_first: bool = False
    ) -> None:
        """Do the same for images (N, H, W) whose pixels were all averaged: `grad` is (N, w)."""
        self._add(grad, x, gradients, "image", shape, scales=True, adds=not is_first)

    def result(self, collected: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return total and product (c,), and add to A and D if `finish_reader` is given them."""
        return finish_reader(parts_of_all(self._parts), self._norm, collected)

    def _add(
        self, grad: Tensor, x: Tensor, out: Tensor, source: Source, shape: Shape, *, scales: bool, adds: bool
    ) -> None:
        num_rows, num_columns = x.shape
        tiles = Tiles.of(num_rows, num_columns)
        parts = x.new_empty(tiles.num_parts, 2, num_columns, dtype=torch.float32)
        _, height, width = shape
        grad_read = grad[:, :num_columns]
        launch(
            sums_of_norm, tiles.grid,
            grad, grad.stride(0), x, x.stride(0), *self._norm.vectors, out, out.stride(0), parts,
            num_rows, tiles.num_rows, num_columns, columns_to_load(num_columns, grad),
            columns_to_load(num_columns, x, out), height, width,
            reads=[grad_read, x, *self._norm.vectors, *([out] if adds else [])], writes=[out[:, :num_columns], parts],
            SOURCE=source, RELU=self._relu, SCALES=scales, ADDS=adds, **tiles.constants,
        )  # fmt: skip
        self._parts.append(parts)


def norm_backward(
    g: Tensor, x: Tensor, norm: ChannelNorm, sums: tuple[Tensor, Tensor] | None, num_rows: int, out: Tensor,
    dropout: Dropout = NO_DROPOUT,
) -> Tensor:  # fmt: skip
    """Compute the gradient of the input of a norm, and of the dropout that made this input.

    Args:
        g: (r, c).
        x: The input of the norm (r, c).
        norm: The norm.
        sums: total and product (c,); None if the norm does not use the statistics of the batch.
        num_rows: R, of all chunks together.
        out: The result (r, c), which may be g itself.
        dropout: The dropout of (r, c).

    Returns:
        `out`.
    """
    total, product = (None, None) if sums is None else sums
    return _input_gradient(g, x, (norm.mean, total, product), (norm.weight, norm.invstd), num_rows, out, dropout)


def finish_gradient(
    gradients: Tensor, x: Tensor, mean: Tensor, collected: tuple[Tensor, Tensor], num_rows: int, out: Tensor,
    dropout: Dropout = NO_DROPOUT,
) -> Tensor:  # fmt: skip
    """Compute the gradient of some columns of a buffer whose readers are all done, and of the dropout before them.

    Args:
        gradients: Columns of G (r, k).
        x: The same columns of the buffer (r, k).
        mean: Their means over the batch (k,).
        collected: Their A and D (k,).
        num_rows: R, of all chunks together.
        out: The result (r, w), w >= k, with zeros from column k on.
        dropout: The dropout of (r, k).

    Returns:
        `out`.
    """
    return _input_gradient(gradients, x, (mean, *collected), None, num_rows, out, dropout)


def _input_gradient(
    g: Tensor, x: Tensor, through_statistics: tuple[Tensor, Tensor | None, Tensor | None],
    weight_and_invstd: tuple[Tensor, Tensor] | None, num_rows: int, out: Tensor, dropout: Dropout,
) -> Tensor:  # fmt: skip
    mean, total, product = through_statistics
    weight, invstd = weight_and_invstd or (None, None)
    mask = dropout.mask
    tiles = Tiles.of(*out.shape)
    vectors = [tensor for tensor in (mean, total, product, weight, invstd) if tensor is not None]
    is_frozen = total is None
    launch(
        input_gradient, tiles.grid,
        g, g.stride(0), x, x.stride(0), mean, total, product, weight, invstd, mask, dropout.keep_rate,
        out, out.stride(0), g.shape[0], tiles.num_rows, num_rows, out.shape[1],
        reads=[g, *vectors, *([] if is_frozen else [x]), *([] if mask is None else [mask])], writes=[out],
        NUM_COLUMNS=x.shape[1], SCALES=weight is not None, IS_FROZEN=is_frozen, DROPS=mask is not None,
        **tiles.constants,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_rows", "num_columns", "height", "width"])
def sums_of_norm(
    grad_ptr, grad_pitch, x_ptr, x_pitch, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, out_ptr, out_pitch, parts_ptr,
    num_rows, rows_per_program, num_columns, num_loaded_of_grad, num_loaded, height, width,
    SOURCE: tl.constexpr, RELU: tl.constexpr, SCALES: tl.constexpr, ADDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the sums of g and of g * (x - mean), (P, 2, c), of each program's rows, and g or weight * invstd * g."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < num_columns
    mean, scale, bias = load_norm(mean_ptr, invstd_ptr, weight_ptr, bias_ptr, columns, column_ok)
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_ok = rows < last
        source, has_gradient = rows, row_ok
        if SOURCE == "2x2":
            image, down, across = rows // (height * width), rows // width % height // 2, rows % width // 2
            source = (image * (height // 2) + down) * (width // 2) + across
            has_gradient = row_ok & (down < height // 2) & (across < width // 2)
        elif SOURCE == "image":
            source = rows // (height * width)
        grad_place = source.to(tl.int64)[:, None] * grad_pitch + columns[None, :]
        grad_mask = has_gradient[:, None] & (columns < num_loaded_of_grad)[None, :]
        grad = tl.load(grad_ptr + grad_place, mask=grad_mask, other=0.0).to(tl.float32)
        if SOURCE == "2x2":
            grad *= 0.25
        elif SOURCE == "image":
            grad /= height * width
        inside = row_ok[:, None] & (columns < num_loaded)[None, :]
        rows = rows.to(tl.int64)[:, None]
        x = tl.load(x_ptr + rows * x_pitch + columns[None, :], mask=inside, other=0.0)
        g = tl.where(column_ok[None, :], grad, 0.0)  # further columns only fill vectors, and hold any value, even NaN
        if RELU:  # which, as in PyTorch, lets the gradient pass where its input is NaN
            g = tl.where(normalise(x, mean, scale, bias) <= 0.0, 0.0, g)
        total += g
        product += g * (x.to(tl.float32) - mean)
        result = g
        if SCALES:
            result = g * scale
        out = out_ptr + rows * out_pitch + columns[None, :]
        if ADDS:
            result += tl.load(out, mask=inside, other=0.0).to(tl.float32)
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=inside)
    part = parts_ptr + tl.program_id(1) * 2 * num_columns + columns
    tl.store(part, tl.sum(total, 0), mask=column_ok)
    tl.store(part + num_columns, tl.sum(product, 0), mask=column_ok)


@triton.jit(do_not_specialize=["num_rows", "num_rows_of_all"])
def input_gradient(
    g_ptr, g_pitch, x_ptr, x_pitch, mean_ptr, total_ptr, product_ptr, weight_ptr, invstd_ptr, mask_ptr, keep_rate,
    out_ptr, out_pitch, num_rows, rows_per_program, num_rows_of_all, num_stored,
    NUM_COLUMNS: tl.constexpr, SCALES: tl.constexpr, IS_FROZEN: tl.constexpr, DROPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write g - total / R - (x - mean) * product / R, times weight * invstd if that is wanted, and dropped.

    The widths are those of bottlenecks and of new channels, few enough to be constants: see `moments_of_rows`.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = columns < NUM_COLUMNS
    if SCALES:
        invstd = tl.load(invstd_ptr + columns, mask=column_ok, other=0.0)
        scale = tl.load(weight_ptr + columns, mask=column_ok, other=0.0) * invstd
    if not IS_FROZEN:
        mean = tl.load(mean_ptr + columns, mask=column_ok, other=0.0)
        offset = tl.load(total_ptr + columns, mask=column_ok, other=0.0) / num_rows_of_all
        slope = tl.load(product_ptr + columns, mask=column_ok, other=0.0) / num_rows_of_all
        if SCALES:
            slope *= invstd
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    for start in range(first, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
        row_ok = rows < last
        inside = row_ok & column_ok[None, :]
        gradient = tl.load(g_ptr + rows * g_pitch + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        if not IS_FROZEN:
            x = tl.load(x_ptr + rows * x_pitch + columns[None, :], mask=inside, other=0.0).to(tl.float32)
            gradient -= offset[None, :] + (x - mean[None, :]) * slope[None, :]
        if SCALES:
            gradient *= scale[None, :]
        if DROPS:
            gradient = drop(gradient, mask_ptr, rows * NUM_COLUMNS + columns[None, :], inside, keep_rate)
        gradient = tl.where(column_ok[None, :], gradient, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + rows * out_pitch + columns[None, :], gradient, mask=row_ok & (columns < num_stored)[None, :])
