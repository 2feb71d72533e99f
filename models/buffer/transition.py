"""The last part of a block over its feature buffer: a transition, the final norm of a network, or nothing.

N images, H x W pixels, R = N * H * W rows; C channels of the block, C' that a transition makes; n images or r rows in a
chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Transition
from .dropout import NO_DROPOUT, Dropout
from .norms import Norm
from .operations import Affine, apply_affine, relu_backward
from .passes import BlockBackward, BlockForward
from .rows import as_nchw, as_rows, pointwise, pointwise_backward


class TransitionParameters(NamedTuple):
    """The parameters of a transition, or their gradients: (C,), (C,) and (C', C, 1, 1)."""

    norm_weight: Tensor
    norm_bias: Tensor
    conv_weight: Tensor


class FinalNormParameters(NamedTuple):
    """The parameters of a final norm, or their gradients, (C,) each."""

    weight: Tensor
    bias: Tensor


def parameters_of_transition(module: nn.Module | None) -> tuple[Tensor, ...]:
    """Return the parameters of a transition, a final norm or nothing, in the order of `backward`."""
    if isinstance(module, Transition):
        return TransitionParameters(module.norm.weight, module.norm.bias, module.conv.weight)
    if isinstance(module, nn.BatchNorm2d):
        return FinalNormParameters(module.weight, module.bias)
    return ()


def forward_transition(
    module: nn.Module | None, block: BlockForward, *, averages: bool
) -> tuple["TransitionPass | FinalNormPass | NoTransitionPass", Tensor]:
    """Let a transition, a final norm or nothing read the whole block.

    Args:
        module: A `Transition`, a `BatchNorm2d`, or None.
        block: The block's forward pass.
        averages: Whether ReLU and the average over all pixels follow a final norm.

    Returns:
        All that the backward pass needs, and the result; see `block_over_buffer`.
    """
    if isinstance(module, Transition):
        return TransitionPass.forward(module, block)
    if isinstance(module, nn.BatchNorm2d):
        return FinalNormPass.forward(module, block, averages=averages)
    return NoTransitionPass.forward(block)


@dataclass(frozen=True)
class TransitionPass:
    """All that the backward pass needs of a `Transition`.

    Without dropout, pooling comes first: both it and the 1x1 convolution are linear and commute, and the convolution
    has a quarter of the pixels to do. With dropout in between, it has to make all of them.

    Attributes:
        norm: Its norm.
        weight: (C', C, 1, 1).
        dropout: Dropout of the convolution's result (R, C').
    """

    norm: Norm
    weight: Tensor
    dropout: Dropout

    @classmethod
    def forward(cls, module: Transition, block: BlockForward) -> tuple["TransitionPass", Tensor]:
        """Compute the transition: (N, C', H // 2, W // 2)."""
        norm, affine = block.norm(module.norm)
        drop, dropout = module.dropout, NO_DROPOUT
        if drop is not None:
            dropout = block.draw_dropout(drop.p, module.conv.out_channels, training=drop.training)
        weight = module.conv.weight.to(block.work.rows.dtype)

        def step(x: Tensor, chunk: slice) -> Tensor:
            if dropout.mask is None:
                pooled = F.avg_pool2d(x, 2)
                return as_nchw(pointwise(as_rows(pooled), weight), (len(pooled), *pooled.shape[2:]))
            rows = dropout.apply(pointwise(as_rows(x), weight), chunk)
            return F.avg_pool2d(as_nchw(rows, (len(x), *x.shape[2:])), 2)

        return cls(norm, module.conv.weight, dropout), _forward_activated(block, affine, step)

    def backward(self, grad: Tensor, block: BlockBackward) -> TransitionParameters:
        """Begin the gradients of the block from that of the result."""
        weight = self.weight.to(block.dtype)

        def step(grad: Tensor, x: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
            if self.dropout.mask is None:
                pooled = as_rows(F.avg_pool2d(x, 2))
                grad_pooled, grad_weight = pointwise_backward(as_rows(grad), pooled, weight)
                grad_pooled = as_nchw(grad_pooled, (len(grad), *grad.shape[2:]))
                return as_rows(_pooling_backward(grad_pooled, x)), grad_weight
            # The gradient of pooling needs the shape of what was pooled, but no values.
            convolved = as_nchw(x.new_empty(chunk.stop - chunk.start, len(weight)), (len(x), *x.shape[2:]))
            grad_rows = self.dropout.apply(as_rows(_pooling_backward(grad, convolved)), chunk)
            return pointwise_backward(grad_rows, as_rows(x), weight)

        return TransitionParameters(*_backward_activated(block, self.norm, grad, step))


@dataclass(frozen=True)
class FinalNormPass:
    """All that the backward pass needs of the final norm of a network.

    Attributes:
        norm: The norm.
        averages: Whether ReLU and the average over all pixels follow.
    """

    norm: Norm
    averages: bool

    @classmethod
    def forward(cls, module: nn.BatchNorm2d, block: BlockForward, *, averages: bool) -> tuple["FinalNormPass", Tensor]:
        """Compute norm, ReLU and average (N, C), or the norm alone (N, C, H, W)."""
        norm, affine = block.norm(module)
        if averages:
            return cls(norm, averages), _forward_activated(block, affine, lambda x, chunk: x.mean((2, 3)))
        return cls(norm, averages), _forward_affine(block, affine)

    def backward(self, grad: Tensor, block: BlockBackward) -> FinalNormParameters:
        """Begin the gradients of the block from that of the result."""
        if self.averages:
            return FinalNormParameters(*_backward_activated(block, self.norm, grad, _average_backward))
        norm = block.norm(self.norm)
        sums = block.gradients.begin(slice(None), as_rows(grad), block.work.rows, norm.affine)
        return FinalNormParameters(*block.gradients.close(norm, [sums]))


@dataclass(frozen=True)
class NoTransitionPass:
    """The end of a block that runs alone: its channels as they were before they were normalised."""

    @classmethod
    def forward(cls, block: BlockForward) -> tuple["NoTransitionPass", Tensor]:
        """Compute all channels of the block, (N, C, H, W)."""
        statistics = block.buffer.statistics
        return cls(), _forward_affine(block, Affine(statistics.invstd.reciprocal(), statistics.mean))

    def backward(self, grad: Tensor, block: BlockBackward) -> tuple[()]:
        """Begin the gradients of the block from that of the result."""
        statistics = block.statistics
        affine = Affine(statistics.invstd.reciprocal(), statistics.mean)
        block.gradients.begin(slice(None), as_rows(grad), block.work.rows, affine)
        return ()


def _forward_affine(block: BlockForward, affine: Affine) -> Tensor:
    """Apply an affine function to all channels of the buffer: (N, C, H, W)."""
    rows = block.work.rows
    return as_nchw(apply_affine(rows, affine, out=torch.empty_like(rows)), block.work.shape)


def _forward_activated(block: BlockForward, affine: Affine, step: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Compute norm and ReLU of the whole block, and a step after them, a chunk of images at a time.

    Args:
        block: The block's forward pass.
        affine: The norm.
        step: Gets norm and ReLU of a chunk (n, C, H, W), and its slice of rows; the results are concatenated.
    """
    work, results = block.work, []
    for images, chunk in work.chunks_of_images(work.rows.shape[1], are_joined=True):
        results.append(step(as_nchw(work.activated(chunk, affine), work.shape_of(images)), chunk))
    return torch.cat(results)


def _backward_activated(
    block: BlockBackward, norm: Norm, grad: Tensor, step: Callable[[Tensor, Tensor, slice], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Go back through the step of `_forward_activated`, and through ReLU and norm.

    Args:
        block: The block's backward pass.
        norm: The norm.
        grad: The gradient of the result.
        step: Gets the gradient of the result for a chunk of images, norm and ReLU of it (n, C, H, W), and its slice of
            rows. Returns the gradient of the latter as rows (r, C), and that of a weight if the step has one.

    Returns:
        The gradients of the norm's weight and bias, and of the step's weight.
    """
    work, buffer_norm = block.work, block.norm(norm)

    def backward_chunk(images: slice, chunk: slice) -> tuple[Tensor, ...]:
        xhat, activated = work.read(chunk, buffer_norm.affine)
        grad_activated, *grad_weight = step(grad[images], as_nchw(activated, work.shape_of(images)), chunk)
        g = relu_backward(grad_activated, activated)
        return *block.gradients.begin(chunk, g, xhat, buffer_norm.affine), *grad_weight

    chunks = (backward_chunk(*slices) for slices in work.chunks_of_images(work.rows.shape[1]))
    return block.gradients.close(buffer_norm, chunks)


def _average_backward(grad: Tensor, x: Tensor, chunk: slice) -> tuple[Tensor]:
    """Share the gradient of an average (n, C) out among the pixels of x (n, C, H, W), as rows (r, C)."""
    num_pixels = x.shape[2] * x.shape[3]
    return ((grad / num_pixels).repeat_interleave(num_pixels, 0),)


def _pooling_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Compute the gradient of x (n, C, H, W) in average pooling with stride 2."""
    return torch.ops.aten.avg_pool2d_backward.default(grad, x, [2, 2], [2, 2], [0, 0], False, True, None)
