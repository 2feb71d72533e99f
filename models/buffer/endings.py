"""What follows norm and ReLU in what reads a whole block, for a chunk of images: forward, and backward.

N images, H x W pixels, C channels of the block, C' that a transition makes; n images in a chunk, r rows.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import Dropout
from .rows import as_maps, as_rows, pointwise, pointwise_backward


class Ending(Protocol):
    """What to do with a chunk of activated maps (n, C, H, W)."""

    def of(self, maps: Tensor, chunk: slice) -> Tensor:
        """Compute it; `chunk` says which rows of the batch these are."""

    def backward(self, grad: Tensor, maps: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        """Gradient with respect to the maps, as rows (r, C), and that of a weight if there is one."""


class Average:
    """The average over all pixels, (n, C)."""

    def of(self, maps: Tensor, chunk: slice) -> Tensor:
        """Compute it."""
        return maps.mean((2, 3))

    def backward(self, grad: Tensor, maps: Tensor, chunk: slice) -> tuple[Tensor]:
        """Each pixel has the same share."""
        num_pixels = maps.shape[2] * maps.shape[3]
        return ((grad / num_pixels).repeat_interleave(num_pixels, 0),)


class PoolAndConvolve(NamedTuple):
    """Pooling and the 1x1 convolution of a transition, (n, C', H // 2, W // 2).

    Both are linear and commute; pooling first leaves a quarter of the pixels to the convolution.

    Attributes:
        weight: (C', C, 1, 1), of the type of the maps.
    """

    weight: Tensor

    def of(self, maps: Tensor, chunk: slice) -> Tensor:
        """Compute it."""
        pooled = F.avg_pool2d(maps, 2)
        return as_maps(pointwise(as_rows(pooled), self.weight), (len(pooled), *pooled.shape[2:]))

    def backward(self, grad: Tensor, maps: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        """Go back through both."""
        pooled = as_rows(F.avg_pool2d(maps, 2))
        grad_pooled, grad_weight = pointwise_backward(as_rows(grad), pooled, self.weight)
        grad_maps = as_maps(grad_pooled, (len(grad), *grad.shape[2:]))
        return as_rows(_pooling_backward(grad_maps, maps)), grad_weight


class ConvolveDropAndPool(NamedTuple):
    """The same with dropout in between, which needs what the convolution makes of all pixels.

    Attributes:
        weight: (C', C, 1, 1), of the type of the maps.
        dropout: Of what the convolution makes, (R, C').
    """

    weight: Tensor
    dropout: Dropout

    def of(self, maps: Tensor, chunk: slice) -> Tensor:
        """Compute it."""
        rows = self.dropout.of(pointwise(as_rows(maps), self.weight), chunk)
        return F.avg_pool2d(as_maps(rows, (len(maps), *maps.shape[2:])), 2)

    def backward(self, grad: Tensor, maps: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        """Go back through all three. The gradient of dropout and pooling needs no values, but the shape of them."""
        shape = len(maps), *maps.shape[2:]
        convolved = as_maps(maps.new_empty(chunk.stop - chunk.start, len(self.weight)), shape)
        grad_rows = self.dropout.of(as_rows(_pooling_backward(grad, convolved)), chunk)
        return pointwise_backward(grad_rows, as_rows(maps), self.weight)


def _pooling_backward(grad: Tensor, maps: Tensor) -> Tensor:
    """Gradient of average pooling with respect to maps (n, C, H, W)."""
    return torch.ops.aten.avg_pool2d_backward.default(grad, maps, [2, 2], [2, 2], [0, 0], False, True, None)
