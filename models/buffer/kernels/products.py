"""The products of a bottleneck layer, each in one pass with the norm and ReLU before it and the sums after it.

    forward   bottleneck    z = relu(norm1(x)) W1^T, dropout, moments of z           reads c         writes b
              new_maps      y = relu(norm2(z)) * W2, dropout, moments of y           reads b         writes k
    backward  3x3           z again; g, the gradient of norm2(z); sums of g          reads c + k     writes 2b
              3x3 weight    gradient of W2                                           reads b + k
              1x1           gradient of z from g; gradient of norm1(x), its sums;
                            gradient of W1; gradient of x                            reads 2b + 2c   writes c

Columns are read and written as often as this says; pixels that a 3x3 convolution reads several times, and the
bottleneck that each of several programs reads, come from a cache. All of a bottleneck and all new channels have to fit
into a tile: `table.plan` says when they do.

N images of H x W pixels, R = N * H * W rows; c channels that a layer reads, b of its bottleneck, k that it makes.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..dropout import NO_DROPOUT, Dropout
from ..norms import ChannelNorm, Statistics
from ..parameters import DenseLayerParameters
from ..rows import Shape
from . import products_backward, products_forward
from .launch import Product, launch
from .sums import finish_moments, finish_reader, finish_sums
from .table import Blocks, Plan
from .tiles import columns_to_load

# Programs that sum over the rows for the gradient of a weight: each writes a part as large as the weight. The number
# depends on the shape only, because it decides in which order is added.
MOST_PARTS = 128
FEWEST_ROWS = 256  # of a part; a multiple of the rows of every tile


class Convolution(NamedTuple):
    """A convolution that reads relu(norm(...)).

    Attributes:
        norm: The norm.
        weight: (b, c, 1, 1) or (k, b, 3, 3), of any dtype and memory format.
        dropout: Dropout of the result, (R, b) or (R, k).
    """

    norm: ChannelNorm
    weight: Tensor
    dropout: Dropout = NO_DROPOUT


class Inputs(NamedTuple):
    """The channels of a block that a layer reads, and the sums of their gradients.

    Attributes:
        x: (R, c).
        grad: G (R, c), the gradient as far as it does not flow through statistics. If its pitch is a multiple of 16
            columns, up to 15 columns from c on are overwritten.
        collected: A and D, (C,) each, C >= c, of what flows through statistics.
    """

    x: Tensor
    grad: Tensor
    collected: tuple[Tensor, Tensor]


class Bottleneck(NamedTuple):
    """A bottleneck in the backward pass.

    Attributes:
        z: (R, b), or memory for it; see `bottleneck`.
        grad: Memory for the gradient of its norm (R, b), with the strides of z.
        is_kept: Whether z is there; else it is computed again.
    """

    z: Tensor
    grad: Tensor
    is_kept: bool


def bottleneck(x: Tensor, first: Convolution, plan: Plan, *, eps: float, out: Tensor) -> Statistics:
    """Compute a bottleneck, and drop values of it.

    Args:
        x: (R, c).
        first: The 1x1 convolution.
        plan: The plan of the layer.
        eps: Added to the variance.
        out: The bottleneck (R, b). Columns from b on may become 0, up to the next multiple of 16.

    Returns:
        Its statistics, (b,) each.
    """
    (num_rows, c), b = x.shape, out.shape[1]
    blocks = plan.bottleneck
    num_tiles = triton.cdiv(num_rows, blocks.rows)
    parts = _parts(x, num_tiles, 3, b)
    launch(
        products_forward.bottleneck_1x1, (num_tiles,),
        *_rows(x), first.norm.vectors, *_weight(first), _dropout(first.dropout), *_rows(out), parts, num_rows, c, b,
        reads=[x, first.weight, *first.norm.vectors, *_mask(first.dropout)], writes=[out, parts],
        product=Product(num_rows, b, c),
        PRECISION=plan.precision, BLOCK_B=plan.block_b, BLOCK_C=blocks.columns, **_constants(blocks),
    )  # fmt: skip
    return finish_moments(parts, num_rows, eps)


def new_maps(
    z: Tensor,
    second: Convolution,
    shape: Shape,
    plan: Plan,
    *,
    eps: float,
    out: Tensor,
    statistics: Statistics | None = None,
) -> Statistics:
    """Compute the channels that a layer makes, and drop values of them.

    Args:
        z: The bottleneck (R, b).
        second: The 3x3 convolution.
        shape: (N, H, W).
        plan: The plan of the layer.
        eps: Added to the variance.
        out: The new channels (R, k).
        statistics: Where to write their statistics to, (k,) each; None for new memory.

    Returns:
        Their statistics.
    """
    (num_rows, b), k = z.shape, out.shape[1]
    blocks = plan.new_maps
    num_tiles = triton.cdiv(num_rows, blocks.rows)
    parts = _parts(z, num_tiles, 3, k)
    launch(
        products_forward.new_maps_3x3, (num_tiles,),
        *_rows(z), second.norm.vectors, *_weight(second), _dropout(second.dropout),
        out, out.stride(0), parts, num_rows, *shape[1:], b, k,
        reads=[z, second.weight, *second.norm.vectors, *_mask(second.dropout)], writes=[out, parts], repeats=[(z, 8)],
        product=Product(num_rows, k, 9 * b),
        PRECISION=plan.precision, BLOCK_B=plan.block_b, BLOCK_K=plan.block_k, **_constants(blocks),
    )  # fmt: skip
    return finish_moments(parts, num_rows, eps, out=statistics)


def backward(
    dy: Tensor, inputs: Inputs, of_z: Bottleneck, first: Convolution, second: Convolution, shape: Shape, plan: Plan
) -> DenseLayerParameters:
    """Go back through a layer.

    Args:
        dy: The gradient of the new channels before their dropout (R, w), w >= k. Columns from k on have no meaning.
        inputs: The channels that the layer reads; the gradient of the loss is added to theirs.
        of_z: The bottleneck.
        first: The 1x1 convolution.
        second: The 3x3 convolution.
        shape: (N, H, W).
        plan: The plan of the layer.

    Returns:
        The gradients of the layer's parameters, in float32.
    """
    (num_rows, c), b, k = inputs.x.shape, of_z.z.shape[1], len(second.weight)
    sums_of_z = _backward_3x3(dy, inputs.x, of_z, first, second, shape, plan)
    # All that is summed over the same parts of the rows lies together, so that one more kernel adds it up.
    rows_of_part = FEWEST_ROWS * triton.cdiv(num_rows, FEWEST_ROWS * MOST_PARTS)
    width2, width1 = second.weight.numel(), first.weight.numel()
    width = width2 + width1 + (0 if plan.backward_1x1_weight else 2 * c)
    parts = _parts(dy, triton.cdiv(num_rows, rows_of_part), width)
    _backward_3x3_weight(dy, of_z.z, second, shape, plan, parts[:, :width2], rows_of_part)
    grad_of_z = GradientOfBottleneck(of_z, second, first.dropout, *sums_of_z)
    if plan.backward_1x1_weight is None:
        _backward_1x1(inputs, grad_of_z, first, plan, parts[:, width2:], rows_of_part)
        of_norm1 = parts[:, width2 + width1 :].unflatten(1, (2, c))
    else:
        of_norm1 = _backward_1x1_input(inputs, grad_of_z, first, plan)
        blocks = plan.backward_1x1_weight
        _backward_1x1_weight(inputs.x, grad_of_z, first, plan, blocks, parts[:, width2:], rows_of_part)
    of_weights = finish_sums(parts[:, : width2 + width1])
    total1, product1 = finish_reader(of_norm1, first.norm, None if first.norm.is_frozen else inputs.collected)
    return DenseLayerParameters(
        norm1_weight=product1,
        norm1_bias=total1,
        conv1_weight=of_weights[width2:].view(b, c, 1, 1),
        norm2_weight=grad_of_z.product,
        norm2_bias=grad_of_z.total,
        conv2_weight=of_weights.as_strided((k, b, 3, 3), _strides_of_gradient(second.weight)),
    )


class GradientOfBottleneck(NamedTuple):
    """All that the gradient of a bottleneck is computed from, by each kernel that needs it.

    Attributes:
        of_z: The bottleneck, and the gradient of its norm.
        second: The convolution that reads it.
        dropout: Dropout of the bottleneck.
        total: Sum of the gradient of the norm (b,).
        product: Sum of the gradient times the normalised bottleneck (b,).
    """

    of_z: Bottleneck
    second: Convolution
    dropout: Dropout
    total: Tensor
    product: Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of a kernel."""
        z, grad, _ = self.of_z
        return grad, *_rows(z), self.second.norm.vectors, self.total, self.product, _dropout(self.dropout)

    @property
    def rows(self) -> list[Tensor]:
        """The rows (R, b) among them that a kernel reads."""
        rows = [self.of_z.grad] if self.second.norm.is_frozen else [self.of_z.grad, self.of_z.z]
        return [*rows, *_mask(self.dropout)]


def _backward_3x3(
    dy: Tensor, x: Tensor, of_z: Bottleneck, first: Convolution, second: Convolution, shape: Shape, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Fill the memory of a bottleneck, and return the gradients of its norm's bias and weight, (b,) each."""
    (num_rows, c), b, k = x.shape, of_z.z.shape[1], len(second.weight)
    z, grad, is_kept = of_z
    blocks = plan.backward_3x3
    num_tiles = triton.cdiv(num_rows, blocks.rows)
    parts = _parts(dy, num_tiles, 2, b)
    again = [x, first.weight, *first.norm.vectors, *_mask(first.dropout)]
    launch(
        products_backward.backward_3x3, (num_tiles,),
        dy, dy.stride(0), columns_to_load(k, dy), *_weight(second), second.norm.vectors, *_rows(z), grad, parts,
        *_rows(x), first.norm.vectors, *_weight(first), _dropout(first.dropout), num_rows, *shape[1:], c, b, k,
        reads=[dy[:, :k], second.weight, *second.norm.vectors, *([z] if is_kept else again)],
        writes=[grad, parts, *([] if is_kept else [z])],
        repeats=[(dy[:, :k], 8)], product=Product(num_rows, b, 9 * k + (0 if is_kept else c)),
        AGAIN=not is_kept, PRECISION=plan.precision,
        BLOCK_B=plan.block_b, BLOCK_K=plan.block_k, BLOCK_C=blocks.columns, **_constants(blocks),
    )  # fmt: skip
    return finish_reader(parts, second.norm)


def _backward_3x3_weight(
    dy: Tensor, z: Tensor, second: Convolution, shape: Shape, plan: Plan, parts: Tensor, rows_of_part: int
) -> None:
    """Write parts (P, k * b * 9) of the gradient of the 3x3 weight."""
    (num_rows, b), k = z.shape, len(second.weight)
    launch(
        products_backward.backward_3x3_weight, (len(parts), 3),
        dy, dy.stride(0), columns_to_load(k, dy), second.norm.vectors, *_rows(z),
        parts, parts.stride(0), _strides_of_gradient(second.weight), num_rows, rows_of_part, *shape[1:], b, k,
        reads=[dy[:, :k], z, *second.norm.vectors], writes=[parts],
        repeats=[(dy[:, :k], 8), (z, 2)], product=Product(b, 9 * k, num_rows),
        PRECISION=plan.precision, BLOCK_B=plan.block_b, BLOCK_K=plan.block_k, **_constants(plan.backward_3x3_weight),
    )  # fmt: skip


def _backward_1x1(
    inputs: Inputs, grad_of_z: GradientOfBottleneck, first: Convolution, plan: Plan, parts: Tensor, rows_of_part: int
) -> None:
    """Add the gradient of the input, and write parts (P, (b + 2) * c) of that of the weight and of sums."""
    x, grad, _ = inputs
    (num_rows, c), b = x.shape, len(first.weight)
    blocks = plan.backward_1x1
    num_tiles = triton.cdiv(c, blocks.columns)
    launch(
        products_backward.backward_1x1, (num_tiles, len(parts)),
        *grad_of_z.arguments, *_weight(first), x, x.stride(0), columns_to_load(c, x, grad), first.norm.vectors,
        grad, grad.stride(0), parts, parts.stride(0), num_rows, rows_of_part, c, b,
        reads=[*grad_of_z.rows, *grad_of_z.second.norm.vectors, first.weight, x, *first.norm.vectors, grad],
        writes=[grad, parts],
        repeats=[(rows, num_tiles - 1) for rows in grad_of_z.rows], product=Product(num_rows, c, 2 * b),
        FROZEN=grad_of_z.second.norm.is_frozen, PRECISION=plan.precision,
        BLOCK_B=plan.block_b, BLOCK_C=blocks.columns, **_constants(blocks),
    )  # fmt: skip


def _backward_1x1_input(inputs: Inputs, grad_of_z: GradientOfBottleneck, first: Convolution, plan: Plan) -> Tensor:
    """Add the gradient of the input, and return parts of sums (tiles, 2, c)."""
    x, grad, _ = inputs
    (num_rows, c), b = x.shape, len(first.weight)
    blocks = plan.backward_1x1
    num_tiles = triton.cdiv(num_rows, blocks.rows)
    parts = _parts(x, num_tiles, 2, c)
    launch(
        products_backward.backward_1x1_input, (num_tiles,),
        *grad_of_z.arguments, *_weight(first), x, x.stride(0), columns_to_load(c, x, grad), first.norm.vectors,
        grad, grad.stride(0), parts, num_rows, c, b,
        reads=[*grad_of_z.rows, *grad_of_z.second.norm.vectors, first.weight, x, *first.norm.vectors, grad],
        writes=[grad, parts],
        product=Product(num_rows, c, b),
        FROZEN=grad_of_z.second.norm.is_frozen, PRECISION=plan.precision,
        BLOCK_B=plan.block_b, BLOCK_C=blocks.columns, **_constants(blocks),
    )  # fmt: skip
    return parts


def _backward_1x1_weight(
    x: Tensor,
    grad_of_z: GradientOfBottleneck,
    first: Convolution,
    plan: Plan,
    blocks: Blocks,
    parts: Tensor,
    rows_of_part: int,
) -> None:
    """Write parts (P, b * c) of the gradient of the 1x1 weight."""
    (num_rows, c), b = x.shape, len(first.weight)
    num_tiles = triton.cdiv(c, blocks.columns)
    launch(
        products_backward.backward_1x1_weight, (num_tiles, len(parts)),
        *grad_of_z.arguments, *_rows(x), first.norm.vectors, parts, parts.stride(0), num_rows, rows_of_part, c, b,
        reads=[*grad_of_z.rows, *grad_of_z.second.norm.vectors, x, *first.norm.vectors], writes=[parts],
        repeats=[(rows, num_tiles - 1) for rows in grad_of_z.rows], product=Product(b, c, num_rows),
        FROZEN=grad_of_z.second.norm.is_frozen, PRECISION=plan.precision,
        BLOCK_B=plan.block_b, BLOCK_C=blocks.columns, **_constants(blocks),
    )  # fmt: skip


def _rows(rows: Tensor) -> tuple[Tensor, int, int]:
    """Return what a kernel needs to know about rows: where they are, their pitch, and how many columns it may load."""
    return rows, rows.stride(0), columns_to_load(rows.shape[1], rows)


def _weight(convolution: Convolution) -> tuple[Tensor, tuple[int, ...]]:
    return convolution.weight, convolution.weight.stride()


def _mask(dropout: Dropout) -> list[Tensor]:
    return [] if dropout.mask is None else [dropout.mask]


def _dropout(dropout: Dropout) -> tuple[Tensor, float] | None:
    """Return dropout as a kernel takes it: a mask and a rate, or None."""
    return None if dropout.mask is None else (dropout.mask, dropout.keep_rate)


def _constants(blocks: Blocks) -> dict[str, Any]:
    constants = {"BLOCK_R": blocks.rows, "num_warps": blocks.warps, "num_stages": blocks.stages}
    return constants if blocks.registers is None else constants | {"maxnreg": blocks.registers}


def _parts(like: Tensor, *size: int) -> Tensor:
    return like.new_empty(size, dtype=torch.float32)


def _strides_of_gradient(weight: Tensor) -> tuple[int, ...]:
    """Return the strides of a weight if it is dense, so that autograd can keep its gradient as it is."""
    if weight.is_contiguous(memory_format=torch.channels_last):
        return weight.stride()
    size = weight.shape
    return size[1] * size[2] * size[3], size[2] * size[3], size[3], 1
