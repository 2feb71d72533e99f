"""What reads a whole block over its feature buffer: a transition, or the last norm layer of a network.

N images, H x W pixels, C channels of the block, C' that a transition makes; n images in a chunk, r rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .feature_buffer import FeatureBuffer, GradientBuffer, Statistics
from .norms import Norm
from .rows import as_maps, as_rows, chunks_of_images, pointwise, pointwise_backward, zero_where_relu_was
from .workspace import Workspace


@dataclass(frozen=True)
class Reader:
    """Norm, ReLU, and then pooling and a 1x1 convolution, or the average over all pixels.

    Attributes:
        norm: Before the ReLU.
        parameters: gamma (C,), beta (C,), and the convolution's weight (C', C, 1, 1) if there is one.
    """

    norm: Norm
    parameters: tuple[Tensor, ...]

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm.running, self.parameters

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Reader":
        """The same reader with the next groups in place of its own."""
        return Reader(self.norm.with_running(next(groups)), next(groups))


def read(reader: Reader, buffer: FeatureBuffer, work: Workspace) -> Tensor:
    """What the reader makes of the whole block: (N, C', H // 2, W // 2) or (N, C)."""
    gamma, beta, *weight = reader.parameters
    affine = reader.norm.reading(gamma, beta, buffer.statistics, buffer.num_rows).affine
    parts = []
    for images, chunk in chunks_of_images(work.rows, work.shape, len(gamma)):
        activated = work.activated(chunk, affine)
        maps = as_maps(activated, work.shape_of(images))
        parts.append(_pool_and_convolve(maps, *weight) if weight else maps.mean((2, 3)))
    return torch.cat(parts)


def _pool_and_convolve(maps: Tensor, weight: Tensor) -> Tensor:
    """Both are linear and commute; pooling first leaves a quarter of the pixels to the 1x1 convolution."""
    pooled = F.avg_pool2d(maps, 2)
    return as_maps(pointwise(as_rows(pooled), weight.to(pooled.dtype)), (len(pooled), *pooled.shape[2:]))


def read_backward(
    reader: Reader, grad: Tensor, gradients: GradientBuffer, statistics: Statistics, work: Workspace
) -> tuple[Tensor, ...]:
    """Begin the gradient buffer with what the reader has, and return the gradients of its parameters."""
    gamma, beta, *weight = reader.parameters
    reading = reader.norm.reading(gamma, beta, statistics, work.num_rows)
    weight = [w.to(work.rows.dtype) for w in weight]

    def share(images: slice, chunk: slice) -> tuple[Tensor, ...]:
        xhat, activated = work.read(chunk, reading.affine)
        maps = as_maps(activated, work.shape_of(images))
        backward = _pool_and_convolve_backward if weight else _average_backward
        grad_activated, *grad_weight = backward(grad[images], maps, *weight)
        g = zero_where_relu_was(grad_activated, activated)
        return *gradients.begin(chunk, g, xhat, reading.affine), *grad_weight

    chunks = chunks_of_images(work.rows, work.shape, len(gamma))
    return gradients.close(reading, (share(images, chunk) for images, chunk in chunks))


def _average_backward(grad: Tensor, maps: Tensor) -> tuple[Tensor]:
    """Gradient of the average over all pixels with respect to rows (r, C) of maps (n, C, H, W)."""
    num_pixels = maps.shape[2] * maps.shape[3]
    return ((grad / num_pixels).repeat_interleave(num_pixels, 0),)


def _pool_and_convolve_backward(grad: Tensor, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `_pool_and_convolve` with respect to rows (r, C) of maps (n, C, H, W), and to weight."""
    pooled = as_rows(F.avg_pool2d(maps, 2))
    grad_pooled, grad_weight = pointwise_backward(as_rows(grad), pooled, weight)
    grad_maps = as_maps(grad_pooled, (len(grad), *grad.shape[2:]))
    backward = torch.ops.aten.avg_pool2d_backward.default
    return as_rows(backward(grad_maps, maps, [2, 2], [2, 2], [0, 0], False, True, None)), grad_weight
