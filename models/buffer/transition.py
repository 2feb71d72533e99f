"""The last part of a block over its feature buffer: a transition, the final norm of a network, or nothing.

N images, H x W pixels, R = N * H * W rows; C channels of the block, C' that a transition makes; n images or r rows in a
chunk.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Transition
from .dropout import NO_DROPOUT, Dropout
from .norm_relu import pooling_backward
from .norms import ChannelNorm
from .operations import add_up
from .passes import BlockBackward, BlockForward
from .rows import Shape, as_nchw, as_rows, pointwise, pointwise_backward


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

    norm: ChannelNorm
    weight: Tensor
    dropout: Dropout

    @classmethod
    def forward(cls, module: Transition, block: BlockForward) -> tuple["TransitionPass", Tensor]:
        """Compute the transition: (N, C', H // 2, W // 2)."""
        work, norm, drop, dropout = block.work, block.norm(module.norm), module.dropout, NO_DROPOUT
        if drop is not None:
            dropout = block.draw_dropout(drop.p, module.conv.out_channels, training=drop.training)
        norm_relu, weight, results = work.norm_relu(norm), work.cast(module.conv.weight), []
        for images, chunk in work.chunks_of_images(work.rows.shape[1], are_joined=True):
            shape, x = work.shape_of(images), norm_relu.first(work.rows[chunk])
            if dropout.mask is None:
                results.append(as_nchw(pointwise(x.pooled(shape), weight), _halved(shape)))
            else:
                rows = dropout.of(chunk).apply(pointwise(x.activated, weight))
                results.append(F.avg_pool2d(as_nchw(rows, shape), 2))
        return cls(norm, module.conv.weight, dropout), _joined(results)

    def backward(self, grad: Tensor, block: BlockBackward) -> TransitionParameters:
        """Begin the gradients of the block from that of the result, (N, C', H // 2, W // 2)."""
        work, weight, norm_relu = block.work, block.work.cast(self.weight), block.work.norm_relu(self.norm)

        def backward_chunk(images: slice, chunk: slice) -> Tensor:
            shape, x, gradients = work.shape_of(images), norm_relu.again(work.rows[chunk]), block.gradients.rows[chunk]
            if self.dropout.mask is None:
                grad_x, grad_weight = pointwise_backward(as_rows(grad[images]), x.pooled(shape), weight)
                norm_relu.backward_into(gradients, grad_x, x, is_first=True, spread="pooled", shape=shape)
                return grad_weight
            # The gradient of pooling needs the shape of what was pooled, but no values.
            convolved = as_nchw(x.rows.new_empty(len(x.rows), len(weight)), shape)
            grad_rows = self.dropout.of(chunk).apply(as_rows(pooling_backward(grad[images], convolved)))
            grad_x, grad_weight = pointwise_backward(grad_rows, x.activated, weight)
            norm_relu.backward_into(gradients, grad_x, x, is_first=True)
            return grad_weight

        chunks = work.chunks_for_transition(has_dropout=self.dropout.mask is not None)
        grad_weight = add_up((backward_chunk(*slices) for slices in chunks), self.norm.mean.dtype)
        norm_bias, norm_weight = block.gradients.close(norm_relu)
        return TransitionParameters(norm_weight, norm_bias, grad_weight[:, : self.weight.shape[1]])


@dataclass(frozen=True)
class FinalNormPass:
    """All that the backward pass needs of the final norm of a network.

    Attributes:
        norm: The norm.
        averages: Whether ReLU and the average over all pixels follow.
    """

    norm: ChannelNorm
    averages: bool

    @classmethod
    def forward(cls, module: nn.BatchNorm2d, block: BlockForward, *, averages: bool) -> tuple["FinalNormPass", Tensor]:
        """Compute norm, ReLU and average (N, C), or the norm alone (N, C, H, W)."""
        work, norm = block.work, block.norm(module)
        norm_relu, rows = work.norm_relu(norm), work.rows
        if not averages:
            return cls(norm, averages), as_nchw(norm_relu.norm_alone(rows, out=rows.new_empty(rows.shape)), work.shape)
        results = []
        for images, chunk in work.chunks_of_images(rows.shape[1], are_joined=True):
            results.append(norm_relu.first(rows[chunk]).averaged(work.shape_of(images)))
        return cls(norm, averages), _joined(results)

    def backward(self, grad: Tensor, block: BlockBackward) -> FinalNormParameters:
        """Begin the gradients of the block from that of the result."""
        work, gradients, norm_relu = block.work, block.gradients.rows, block.work.norm_relu(self.norm)
        if self.averages:
            grad = grad.contiguous()  # that of a sum is expanded, and kernels read rows
            for images, chunk in work.chunks_for_transition(has_dropout=False):
                x, shape = norm_relu.again(work.rows[chunk]), work.shape_of(images)
                norm_relu.backward_into(
                    gradients[chunk], grad[images], x, is_first=True, spread="averaged", shape=shape
                )
        else:
            norm_relu.norm_backward_into(gradients, as_rows(grad), work.rows)
        bias, weight = block.gradients.close(norm_relu)
        return FinalNormParameters(weight, bias)


@dataclass(frozen=True)
class NoTransitionPass:
    """The end of a block that runs alone: its channels as they are."""

    @classmethod
    def forward(cls, block: BlockForward) -> tuple["NoTransitionPass", Tensor]:
        """Return all channels of the block, (N, C, H, W)."""
        return cls(), as_nchw(block.work.rows.clone(memory_format=torch.contiguous_format), block.work.shape)

    def backward(self, grad: Tensor, block: BlockBackward) -> tuple[()]:
        """Begin the gradients of the block from that of the result."""
        block.gradients.rows.copy_(as_rows(grad))
        return ()


def _halved(shape: Shape) -> Shape:
    n, height, width = shape
    return n, height // 2, width // 2


def _joined(chunks: list[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
