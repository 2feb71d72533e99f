"""What reads a whole block over its feature buffer: a transition, or the last norm layer of a network.

N images, H x W pixels, R = N * H * W rows; C channels of the block, C' that a transition makes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dropout import NO_DROPOUT, Dropout
from .endings import Average, ConvolveDropAndPool, Ending, PoolAndConvolve
from .feature_buffer import GradientBuffer, Statistics
from .norms import Norm
from .rows import as_maps, chunks_of_images, zero_where_relu_was
from .stage_forward import StageForward
from .workspace import Workspace


@dataclass(frozen=True)
class Reader:
    """Norm, ReLU, and then 1x1 convolution, dropout and pooling, or the average over all pixels.

    Attributes:
        norm: Before the ReLU.
        parameters: As `parameters_of_reader` orders them.
        dropout: Of what the convolution makes, (R, C').
    """

    norm: Norm
    parameters: tuple[Tensor, ...]
    dropout: Dropout

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm.running, self.parameters, self.dropout.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Reader":
        """The same reader with the next groups in place of its own."""
        return Reader(self.norm.with_running(next(groups)), next(groups), self.dropout.with_tensors(groups))

    def ending(self, dtype: torch.dtype) -> Ending:
        """What follows the ReLU, for maps of a type."""
        weights = [weight.to(dtype) for weight in self.parameters[2:]]
        if not weights:
            return Average()
        return ConvolveDropAndPool(*weights, self.dropout) if self.dropout.mask else PoolAndConvolve(*weights)


def parameters_of_reader(module: nn.Module) -> tuple[Tensor, ...]:
    """Of a norm layer (C,) and (C,), of a `Transition` also the weight of its convolution (C', C, 1, 1)."""
    norm = norm_of_reader(module)
    return norm.weight, norm.bias, *(() if norm is module else (module.conv.weight,))


def norm_of_reader(module: nn.Module) -> nn.BatchNorm2d:
    """The norm layer of a `Transition`, or the norm layer that the module is."""
    return getattr(module, "norm", module)


def read(module: nn.Module, parameters: tuple[Tensor, ...], forward: StageForward) -> tuple[Reader, Tensor]:
    """Let a transition or the last norm layer read the whole block.

    Args:
        module: Its settings are used.
        parameters: As `parameters_of_reader` orders them.
        forward: Of the block.

    Returns:
        What `read_backward` needs, and what the module makes: (N, C', H // 2, W // 2), or (N, C).
    """
    gamma, beta, *_ = parameters
    norm, affine = forward.read(norm_of_reader(module), gamma, beta)
    reader = Reader(norm, parameters, _draw_dropout(module, forward))
    work = forward.work
    ending = reader.ending(work.rows.dtype)
    parts = []
    for images, chunk in chunks_of_images(work.rows, work.shape, len(gamma)):
        maps = as_maps(work.activated(chunk, affine), work.shape_of(images))
        parts.append(ending.of(maps, chunk))
    return reader, torch.cat(parts)


def _draw_dropout(module: nn.Module, forward: StageForward) -> Dropout:
    drop = getattr(module, "drop", None)
    if drop is None:
        return NO_DROPOUT
    return forward.draw_dropout(drop.p, module.conv.out_channels, training=drop.training)


def read_backward(
    reader: Reader, grad: Tensor, gradients: GradientBuffer, statistics: Statistics, work: Workspace
) -> tuple[Tensor, ...]:
    """Begin the gradient buffer with what the reader has, and return the gradients of its parameters."""
    gamma, beta, *_ = reader.parameters
    reading = reader.norm.reading(gamma, beta, statistics, work.num_rows)
    ending = reader.ending(work.rows.dtype)

    def share(images: slice, chunk: slice) -> tuple[Tensor, ...]:
        xhat, activated = work.read(chunk, reading.affine)
        maps = as_maps(activated, work.shape_of(images))
        grad_activated, *grad_weight = ending.backward(grad[images], maps, chunk)
        g = zero_where_relu_was(grad_activated, activated)
        return *gradients.begin(chunk, g, xhat, reading.affine), *grad_weight

    chunks = chunks_of_images(work.rows, work.shape, len(gamma))
    return gradients.close(reading, (share(images, chunk) for images, chunk in chunks))
