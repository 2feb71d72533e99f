"""What reads a whole block over its feature buffer: a transition, the last norm layer of a network, or nothing.

N images, H x W pixels, R = N * H * W rows; C channels of the block, C' that a transition makes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .affine import Affine, apply_affine
from .dropout import NO_DROPOUT, Dropout
from .endings import Average, ConvolveDropAndPool, Ending, PoolAndConvolve
from .feature_buffer import GradientBuffer, Reading, Statistics
from .norms import Norm
from .rows import as_maps, as_rows, chunks_of_images, zero_where_relu_was
from .stage_forward import StageForward
from .workspace import Workspace


@dataclass(frozen=True)
class Reader:
    """Norm, ReLU, and then 1x1 convolution, dropout and pooling, or the average over all pixels.

    The norm may also stand alone, or there may be nothing, so that the block's maps are what is read.

    Attributes:
        norm: Before the ReLU; None if the maps are read as the block has made them.
        parameters: As `parameters_of_reader` orders them.
        dropout: Of what the convolution makes, (R, C').
        activates: Whether ReLU and an ending follow the norm.
    """

    norm: Norm | None
    parameters: tuple[Tensor, ...]
    dropout: Dropout
    activates: bool

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm.running if self.norm else (), self.parameters, self.dropout.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Reader":
        """The same reader with the next groups in place of its own."""
        running = next(groups)
        norm = self.norm and self.norm.with_running(running)
        return Reader(norm, next(groups), self.dropout.with_tensors(groups), self.activates)

    def reading(self, statistics: Statistics, num_rows: int) -> Reading:
        """How the buffer is read: by the norm, or so that the maps are again as they were before they were written."""
        if self.norm:
            return self.norm.reading(*self.parameters[:2], statistics, num_rows)
        return Reading(Affine(statistics.invstd.reciprocal(), statistics.mean), offset=statistics.mean)

    def ending(self, dtype: torch.dtype) -> Ending:
        """The step after the ReLU, for maps of a type."""
        weights = [weight.to(dtype) for weight in self.parameters[2:]]
        if not weights:
            return Average()
        return ConvolveDropAndPool(*weights, self.dropout) if self.dropout.mask else PoolAndConvolve(*weights)


def parameters_of_reader(module: nn.Module | None) -> tuple[Tensor, ...]:
    """Of a norm layer (C,) and (C,), of a `Transition` also the weight of its convolution (C', C, 1, 1)."""
    if module is None:
        return ()
    norm = norm_of_reader(module)
    return norm.weight, norm.bias, *(() if norm is module else (module.conv.weight,))


def norm_of_reader(module: nn.Module) -> nn.BatchNorm2d:
    """The norm layer of a `Transition`, or the norm layer that the module is."""
    return getattr(module, "norm", module)


def read(
    module: nn.Module | None, parameters: tuple[Tensor, ...], forward: StageForward, *, averages: bool
) -> tuple[Reader, Tensor]:
    """Let a transition, the last norm layer or nothing read the whole block.

    Args:
        module: Its settings are used. None: the block's maps are the result.
        parameters: As `parameters_of_reader` orders them.
        forward: Of the block.
        averages: Whether ReLU and the average over all pixels follow a norm layer.

    Returns:
        What `read_backward` needs, and what the module makes: (N, C', H // 2, W // 2), (N, C), or (N, C, H, W) of a
        norm layer alone and of nothing.
    """
    work = forward.work
    norm = forward.note(norm_of_reader(module)) if module is not None else None
    is_transition = len(parameters) > 2
    reader = Reader(
        norm, parameters, _draw_dropout(module, forward), activates=is_transition or (averages and norm is not None)
    )
    affine = reader.reading(forward.buffer.statistics, work.num_rows).affine
    if not reader.activates:
        return reader, as_maps(apply_affine(work.rows, affine, out=torch.empty_like(work.rows)), work.shape)
    ending = reader.ending(work.rows.dtype)
    parts = []
    for images, chunk in chunks_of_images(work.rows, work.shape, work.rows.shape[1], collects=True):
        maps = as_maps(work.activated(chunk, affine), work.shape_of(images))
        parts.append(ending.of(maps, chunk))
    return reader, torch.cat(parts)


def _draw_dropout(module: nn.Module | None, forward: StageForward) -> Dropout:
    drop = getattr(module, "drop", None)
    if drop is None:
        return NO_DROPOUT
    return forward.draw_dropout(drop.p, module.conv.out_channels, training=drop.training)


def read_backward(
    reader: Reader, grad: Tensor, gradients: GradientBuffer, statistics: Statistics, work: Workspace
) -> tuple[Tensor, ...]:
    """Begin the gradient buffer with what the reader has, and return the gradients of its parameters."""
    reading = reader.reading(statistics, work.num_rows)
    if not reader.activates:
        shares = [gradients.begin(slice(None), as_rows(grad), work.rows, reading.affine)]
        return gradients.close(reading, shares) if reader.norm else ()
    ending = reader.ending(work.rows.dtype)

    def share(images: slice, chunk: slice) -> tuple[Tensor, ...]:
        xhat, activated = work.read(chunk, reading.affine)
        maps = as_maps(activated, work.shape_of(images))
        grad_activated, *grad_weight = ending.backward(grad[images], maps, chunk)
        g = zero_where_relu_was(grad_activated, activated)
        return *gradients.begin(chunk, g, xhat, reading.affine), *grad_weight

    chunks = chunks_of_images(work.rows, work.shape, work.rows.shape[1])
    return gradients.close(reading, (share(images, chunk) for images, chunk in chunks))
