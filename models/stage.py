"""A dense block and what reads it, as one autograd function over one feature buffer.

Kept for the backward pass are the buffer, three numbers for each of its channels, and a mask for each layer that drops
values. Everything else is computed again from the buffer, layer by layer. `feature_buffer` has the mathematics.

N images, C channels of the whole block, H x W pixels, R = N * H * W rows, c channels that a layer reads, k that it
makes, b of its bottleneck.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .feature_buffer import Affine, FeatureBuffer, GradientBuffer, Statistics, activate
from .norms import Norm, update_running_statistics
from .rows import (
    Scratch,
    as_maps,
    as_rows,
    chunks_of_images,
    chunks_of_rows,
    convolution_backward,
    pointwise,
    pointwise_backward,
    zero_where_relu_was,
)


def read_block(maps: Tensor, block: nn.Module, reader: nn.Module) -> Tensor:
    """Compute a dense block of (N, C0, H, W) and what reads it, in training mode, with little kept.

    Args:
        maps: What the block starts with, in any memory format.
        block: A `DenseBlock`.
        reader: A `Transition`, or the last norm layer of a network.

    Returns:
        What the transition makes, (N, C', H // 2, W // 2), in the memory format of `maps`. For a norm layer: norm,
        ReLU and the average over all pixels, (N, C).
    """
    layers = tuple(block.children())
    last_norm = getattr(reader, "norm", reader)
    parameters = [tensor for layer in layers for tensor in _parameters_of(layer)]
    parameters += [last_norm.weight, last_norm.bias]
    parameters += [] if reader is last_norm else [reader.conv.weight]
    return DenseStage.apply(maps, layers, last_norm, *parameters)


def _parameters_of(layer: nn.Module) -> tuple[Tensor, ...]:
    norm1, norm2 = layer.norm1, layer.norm2
    return norm1.weight, norm1.bias, layer.conv1.weight, norm2.weight, norm2.bias, layer.conv2.weight


@dataclass(frozen=True)
class Layer:
    """A dense layer, as the backward pass needs it.

    Attributes:
        norm1: Before the 1x1 convolution.
        norm2: Before the 3x3 convolution.
        parameters: As `_parameters_of` orders them: (c,), (c,), (b, c, 1, 1), (b,), (b,), (k, b, 3, 3).
        keep_rate: Share of its new values that dropout keeps.
        mask: bool (R, k), the values that it kept; empty without dropout.
    """

    norm1: Norm
    norm2: Norm
    parameters: tuple[Tensor, ...]
    keep_rate: float = 1.0
    mask: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm1.running, self.norm2.running, self.parameters, self.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Layer":
        """The same layer with the next groups in place of its own."""
        norm1, norm2 = (replace(norm, running=next(groups)) for norm in (self.norm1, self.norm2))
        return replace(self, norm1=norm1, norm2=norm2, parameters=next(groups), mask=next(groups))


@dataclass(frozen=True)
class Reader:
    """What reads a whole block: norm, ReLU, and then pooling and a 1x1 convolution, or the average over all pixels.

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
        return Reader(replace(self.norm, running=next(groups)), next(groups))


class DenseStage(torch.autograd.Function):
    """`read_block`, as a function of maps and of all parameters in the order in which they are used."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, modules: tuple[nn.Module, ...], last_norm: nn.BatchNorm2d, *parameters: Tensor
    ) -> Tensor:
        """Fill the buffer layer by layer, and let the reader read it."""
        dtype = _computing_dtype(maps)
        with torch.autocast(maps.device.type, enabled=False):
            reader = Reader(Norm.of(last_norm), parameters[6 * len(modules) :])
            buffer = FeatureBuffer(maps, len(reader.parameters[0]), dtype)
            work = Workspace(buffer.rows, buffer.shape)
            layers = []
            for i, module in enumerate(modules):
                layer = Layer(Norm.of(module.norm1), Norm.of(module.norm2), parameters[6 * i : 6 * i + 6])
                new = _new_maps(layer, module, buffer, work)
                if module.drop_rate and module.training:
                    new, layer = _dropped(new, layer, module.drop_rate, like=maps)
                buffer.append(new)
                layers.append(layer)
            update_running_statistics(last_norm, buffer.statistics)
            result = _read(reader, buffer, work)
            result = result.contiguous(memory_format=_memory_format(maps)) if result.dim() == 4 else result
        ctx.shape, ctx.num_inputs = buffer.shape, maps.shape[1]
        _save(ctx, buffer, layers, reader)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Go back through the reader and the layers, adding up in one buffer of gradients."""
        (rows, *statistics), layers, reader = _restore(ctx)
        statistics = Statistics(*statistics)
        with torch.autocast(grad.device.type, enabled=False):
            gradients = GradientBuffer(rows, statistics)
            work = Workspace(rows, ctx.shape)
            of_parameters = [_read_backward(reader, grad, gradients, statistics, work)]
            for layer in reversed(layers):
                of_parameters.insert(0, _layer_backward(layer, gradients, statistics, work))
            grad_maps = as_maps(gradients.take(slice(ctx.num_inputs)), ctx.shape)
        return grad_maps, None, None, *(tensor for group in of_parameters for tensor in group)


class Workspace:
    """Memory that the layers of a stage use one after the other.

    Args:
        rows: The feature buffer's rows (R, C).
        shape: (N, H, W).
    """

    def __init__(self, rows: Tensor, shape: tuple[int, int, int]):
        self.rows = rows
        self.shape = shape
        self.chunk = Scratch(rows, rows.dtype)
        self.bottleneck = Scratch(rows, rows.dtype)

    def bottleneck_maps(self, affine: Affine, weight: Tensor) -> Tensor:
        """Norm, ReLU and 1x1 convolution (b, c, 1, 1) of the first c channels: (N, b, H, W), until called again."""
        num_outputs, num_inputs = weight.shape[:2]
        weight = weight.to(self.rows.dtype)
        z = self.bottleneck.shaped(len(self.rows), num_outputs)
        for chunk in chunks_of_rows(self.rows, num_inputs):
            z[chunk] = pointwise(activate(self.rows[chunk, :num_inputs], affine, self.chunk), weight)
        return as_maps(z, self.shape)


def _computing_dtype(maps: Tensor) -> torch.dtype:
    """The type in which autocast, if it is on, would run convolutions of maps."""
    device = maps.device.type
    autocast = torch.is_autocast_enabled(device) and maps.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else maps.dtype


def _memory_format(maps: Tensor) -> torch.memory_format:
    """That of maps; maps of one channel have both, and count as contiguous, as PyTorch has it."""
    channels_last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _new_maps(layer: Layer, module: nn.Module, buffer: FeatureBuffer, work: Workspace) -> Tensor:
    """What a layer adds to the buffer, (N, k, H, W)."""
    gamma1, beta1, weight1, gamma2, beta2, weight2 = layer.parameters
    update_running_statistics(module.norm1, buffer.statistics)
    affine = layer.norm1.affine(gamma1, beta1, buffer.statistics, len(buffer.rows))
    z = work.bottleneck_maps(affine, weight1)
    activated = layer.norm2.normalise(z, gamma2, beta2, update=module.norm2)[0].relu_()
    return F.conv2d(activated, weight2.to(z.dtype), padding=1)


def _dropped(new: Tensor, layer: Layer, drop_rate: float, *, like: Tensor) -> tuple[Tensor, Layer]:
    """Drop values of new maps. The same are dropped as by the plain network, whose maps have the format of `like`."""
    noise = F.dropout(torch.ones_like(new, memory_format=_memory_format(like)), drop_rate)
    return new * noise, replace(layer, keep_rate=1 - drop_rate, mask=(as_rows(noise != 0),))


def _layer_backward(
    layer: Layer, gradients: GradientBuffer, statistics: Statistics, work: Workspace
) -> tuple[Tensor, ...]:
    """Take the gradient of a layer's new maps, add to that of what it read, and return those of its parameters."""
    gamma1, beta1, weight1, gamma2, beta2, weight2 = layer.parameters
    num_inputs, num_outputs = len(gamma1), len(weight2)
    grad = gradients.take(slice(num_inputs, num_inputs + num_outputs))
    for mask in layer.mask:
        grad.mul_(mask).div_(layer.keep_rate)
    affine = layer.norm1.affine(gamma1, beta1, statistics, len(work.rows))

    z = work.bottleneck_maps(affine, weight1)
    activated, *batch = layer.norm2.normalise(z, gamma2, beta2)
    activated.relu_()
    grad, grad_weight2 = convolution_backward(as_maps(grad, work.shape), activated, weight2.to(z.dtype), padding=1)
    grad = zero_where_relu_was(grad, activated)
    del activated  # one bottleneck less at the peak of a step
    grad_z, grad_gamma2, grad_beta2 = layer.norm2.normalise_backward(grad, z, gamma2, *batch)
    shares = _bottleneck_shares(as_rows(grad_z), affine, weight1.to(z.dtype), gradients, work)
    return *gradients.close(affine, shares), grad_gamma2, grad_beta2, grad_weight2


def _bottleneck_shares(
    grad: Tensor, affine: Affine, weight: Tensor, gradients: GradientBuffer, work: Workspace
) -> Iterator[tuple[Tensor, ...]]:
    """From the gradient (R, b) of a bottleneck, each chunk's share of those of beta, gamma and weight."""
    num_inputs = weight.shape[1]
    for chunk in chunks_of_rows(work.rows, num_inputs):
        activated = activate(work.rows[chunk, :num_inputs], affine, work.chunk)
        grad_activated, grad_weight = pointwise_backward(grad[chunk], activated, weight)
        yield *gradients.add(chunk, grad_activated, activated, affine), grad_weight


def _read(reader: Reader, buffer: FeatureBuffer, work: Workspace) -> Tensor:
    """What the reader makes of the whole block: (N, C', H // 2, W // 2) or (N, C)."""
    gamma, beta, *weight = reader.parameters
    affine = reader.norm.affine(gamma, beta, buffer.statistics, len(buffer.rows))
    parts = []
    for images, chunk in chunks_of_images(work.rows, work.shape):
        activated = activate(work.rows[chunk], affine, work.chunk)
        num_images = images.stop - images.start
        if weight:
            parts.append(_pool_and_convolve(activated, (num_images, *work.shape[1:]), weight[0]))
        else:
            parts.append(activated.view(num_images, -1, len(gamma)).mean(1))
    return torch.cat(parts)


def _pool_and_convolve(activated: Tensor, shape: tuple[int, int, int], weight: Tensor) -> Tensor:
    """Both are linear and commute; pooling first leaves a quarter of the pixels to the 1x1 convolution."""
    pooled = F.avg_pool2d(as_maps(activated, shape), 2)
    return as_maps(pointwise(as_rows(pooled), weight.to(pooled.dtype)), (len(pooled), *pooled.shape[2:]))


def _read_backward(
    reader: Reader, grad: Tensor, gradients: GradientBuffer, statistics: Statistics, work: Workspace
) -> tuple[Tensor, ...]:
    """Begin the gradient buffer with what the reader has, and return the gradients of its parameters."""
    gamma, beta, *weight = reader.parameters
    affine = reader.norm.affine(gamma, beta, statistics, len(work.rows))
    weight = [w.to(work.rows.dtype) for w in weight]
    return gradients.close(affine, _reader_shares(grad, affine, weight, gradients, work))


def _reader_shares(
    grad: Tensor, affine: Affine, weight: list[Tensor], gradients: GradientBuffer, work: Workspace
) -> Iterator[tuple[Tensor, ...]]:
    """Each chunk's share of the gradients of beta and gamma, and of the weight if there is one."""
    num_pixels = work.shape[1] * work.shape[2]
    for images, chunk in chunks_of_images(work.rows, work.shape):
        activated = activate(work.rows[chunk], affine, work.chunk)
        if weight:
            maps = as_maps(activated, (len(grad[images]), *work.shape[1:]))
            grad_activated, grad_weight = _pool_and_convolve_backward(grad[images], maps, weight[0])
            yield *gradients.begin(chunk, grad_activated, activated, affine), grad_weight
        else:
            grad_activated = (grad[images] / num_pixels).repeat_interleave(num_pixels, 0)
            yield gradients.begin(chunk, grad_activated, activated, affine)


def _pool_and_convolve_backward(grad: Tensor, activated: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `_pool_and_convolve` with respect to rows and weight; `activated` is (n, C, H, W)."""
    pooled = as_rows(F.avg_pool2d(activated, 2))
    grad_pooled, grad_weight = pointwise_backward(as_rows(grad), pooled, weight)
    grad_maps = as_maps(grad_pooled, (len(grad), *grad.shape[2:]))
    backward = torch.ops.aten.avg_pool2d_backward.default
    return as_rows(backward(grad_maps, activated, [2, 2], [2, 2], [0, 0], False, True, None)), grad_weight


def _save(ctx: Any, buffer: FeatureBuffer, layers: Sequence[Layer], reader: Reader) -> None:
    """Hand all tensors to autograd, which watches them for changes and frees them; only the rest stays on ctx."""
    groups = [(buffer.rows, *buffer.statistics), *reader.tensors()]
    groups += [group for layer in layers for group in layer.tensors()]
    ctx.save_for_backward(*(tensor for group in groups for tensor in group))
    ctx.group_sizes = [len(group) for group in groups]
    nothing = repeat(())
    ctx.reader, ctx.layers = reader.with_tensors(nothing), [layer.with_tensors(nothing) for layer in layers]


def _restore(ctx: Any) -> tuple[tuple[Tensor, ...], list[Layer], Reader]:
    """Take back what `_save` handed over: rows and statistics of the buffer, layers, and reader."""
    tensors = iter(ctx.saved_tensors)
    groups = iter([tuple(islice(tensors, size)) for size in ctx.group_sizes])
    of_buffer, reader = next(groups), ctx.reader.with_tensors(groups)
    return of_buffer, [layer.with_tensors(groups) for layer in ctx.layers], reader
