"""A dense block and what reads it, as one autograd function over one feature buffer.

Kept for the backward pass are the buffer, three numbers for each of its channels, two for each channel of a bottleneck,
and a mask wherever values are dropped; and bottlenecks, where that is asked for. Everything else is computed again
from the buffer, layer by layer. `feature_buffer` has the mathematics.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, repeat
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .feature_buffer import FeatureBuffer, GradientBuffer, Statistics
from .layers import DenseLayerPass
from .norms import RunningStatistics
from .plain_layer import PlainLayerPass
from .rows import as_maps
from .second_derivatives import refuse_derivatives
from .stage_forward import StageForward
from .transition import Reader, parameters_of_reader, read, read_backward
from .workspace import Workspace


class LayerPass(Protocol):
    """What the backward pass needs of a dense layer, of one kind or the other."""

    @staticmethod
    def parameters_of(layer: nn.Module) -> tuple[Tensor, ...]:
        """Those of a layer, in the order of use."""

    @classmethod
    def run(
        cls, module: nn.Module, parameters: tuple[Tensor, ...], forward: StageForward, *, keeps_bottleneck: bool
    ) -> "LayerPass":
        """Let a layer read the buffer and write what it makes."""

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "LayerPass":
        """The same with the next groups in place of its own."""

    def backward(self, gradients: GradientBuffer, statistics: Statistics, work: Workspace) -> tuple[Tensor, ...]:
        """Take the gradient of the new maps, add to that of what was read; return those of all parameters."""


def read_block(
    maps: Tensor, block: nn.Module, reader: nn.Module | None, *, num_bottlenecks: int = 0, averages: bool = True
) -> Tensor:
    """Compute a dense block of (N, C0, H, W) and what reads it, in training mode, with little kept.

    Args:
        maps: What the block starts with, in any memory format.
        block: A `DenseBlock`.
        reader: A `Transition`, the last norm layer of a network, or None for the block alone.
        num_bottlenecks: How many of the last layers keep what their 1x1 convolution makes for the backward pass.
        averages: Whether ReLU and the average over all pixels follow a norm layer.

    Returns:
        What the transition makes, (N, C', H // 2, W // 2). For a norm layer: norm, ReLU and the average, (N, C), or
        without `averages` what the norm makes, (N, C, H, W). For None: all maps of the block, (N, C, H, W). What has
        four dimensions is in the memory format of `maps`.
    """
    layers = layers_of(block)
    parameters = [tensor for layer in layers for tensor in _kind_of(layer).parameters_of(layer)]
    settings = (num_bottlenecks, averages)
    return DenseStage.apply(maps, layers, reader, settings, *parameters, *parameters_of_reader(reader))


def layers_of(block: nn.Module) -> tuple[nn.Module, ...]:
    """Its dense layers, in the order of use."""
    return tuple(block.children())


def has_bottleneck(layer: nn.Module) -> bool:
    """Whether a dense layer is a `DenseLayer`, and not a `PlainLayer`."""
    return hasattr(layer, "conv2")


def last_convolution(layer: nn.Module) -> nn.Conv2d:
    """The 3x3 convolution of a dense layer."""
    return layer.conv2 if has_bottleneck(layer) else layer.conv1


def _kind_of(layer: nn.Module) -> type[LayerPass]:
    return DenseLayerPass if has_bottleneck(layer) else PlainLayerPass


class DenseStage(torch.autograd.Function):
    """`read_block`, as a function of maps and of all parameters in the order in which they are used."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        modules: tuple[nn.Module, ...],
        reading_module: nn.Module | None,
        settings: tuple[int, bool],
        *parameters: Tensor,
    ) -> Tensor:
        """Fill the buffer layer by layer, and let the reader read it."""
        *of_layers, of_reader = _grouped(parameters, modules)
        num_bottlenecks, averages = settings
        dtype, memory_format = computing_dtype(maps), _memory_format(maps)
        keeps = [i >= len(modules) - num_bottlenecks for i in range(len(modules))]
        num_features = maps.shape[1] + sum(own[-1].shape[0] for own in of_layers)
        with _without_autocast(maps):
            buffer = FeatureBuffer(maps, num_features, dtype)
            work = Workspace(buffer.rows, buffer.shape)
            running = RunningStatistics()
            forward = StageForward(buffer, work, running, memory_format)
            layers = [
                _kind_of(module).run(module, own, forward, keeps_bottleneck=keep)
                for module, own, keep in zip(modules, of_layers, keeps, strict=True)
            ]
            reader, result = read(reading_module, of_reader, forward, averages=averages)
            running.move()
            result = result.contiguous(memory_format=memory_format) if result.dim() == 4 else result
        ctx.shape, ctx.num_inputs = buffer.shape, maps.shape[1]
        _save(ctx, buffer, layers, reader)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs; they cannot be differentiated again."""
        with torch.no_grad():
            gradients = DenseStage._backward(ctx, grad)
        return refuse_derivatives(gradients) if torch.is_grad_enabled() else gradients

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Go back through the reader and the layers, adding up in one buffer of gradients."""
        (rows, *statistics), layers, reader = _restore(ctx)
        statistics = Statistics(*statistics)
        with _without_autocast(grad):
            gradients = GradientBuffer(rows, statistics)
            work = Workspace(rows, ctx.shape)
            of_parameters = [read_backward(reader, grad, gradients, statistics, work)]
            for layer in reversed(layers):
                of_parameters.insert(0, layer.backward(gradients, statistics, work))
            grad_maps = as_maps(gradients.take(slice(ctx.num_inputs))(slice(None)), ctx.shape)
        return grad_maps, None, None, None, *(tensor for group in of_parameters for tensor in group)


def _grouped(parameters: tuple[Tensor, ...], modules: Sequence[nn.Module]) -> list[tuple[Tensor, ...]]:
    """The parameters of each layer, followed by those of the reader."""
    own = iter(parameters)
    counts = [len(_kind_of(module).parameters_of(module)) for module in modules]
    return [tuple(islice(own, count)) for count in counts] + [tuple(own)]


def computing_dtype(maps: Tensor) -> torch.dtype:
    """The type in which autocast, if it is on, would run convolutions of maps."""
    return torch.get_autocast_dtype(maps.device.type) if is_autocast(maps) else maps.dtype


def is_autocast(maps: Tensor) -> bool:
    """Whether autocast would run convolutions of maps in another type. Not every device has it: `meta` has not."""
    device = maps.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and maps.dtype != torch.float64


def _without_autocast(maps: Tensor) -> AbstractContextManager[object]:
    device = maps.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _memory_format(maps: Tensor) -> torch.memory_format:
    """That of maps; maps of one channel have both, and count as contiguous, as PyTorch has it."""
    channels_last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _save(ctx: Any, buffer: FeatureBuffer, layers: Sequence[LayerPass], reader: Reader) -> None:
    """Hand all tensors to autograd, which watches them for changes and frees them; only the rest stays on ctx."""
    groups = [(buffer.rows, *buffer.statistics), *reader.tensors()]
    groups += [group for layer in layers for group in layer.tensors()]
    ctx.save_for_backward(*(tensor for group in groups for tensor in group))
    ctx.group_sizes = [len(group) for group in groups]
    nothing = repeat(())
    ctx.reader, ctx.layers = reader.with_tensors(nothing), [layer.with_tensors(nothing) for layer in layers]


def _restore(ctx: Any) -> tuple[tuple[Tensor, ...], list[LayerPass], Reader]:
    """Take back what `_save` handed over: rows and statistics of the buffer, layers, and reader."""
    tensors = iter(ctx.saved_tensors)
    groups = iter([tuple(islice(tensors, size)) for size in ctx.group_sizes])
    of_buffer, reader = next(groups), ctx.reader.with_tensors(groups)
    return of_buffer, [layer.with_tensors(groups) for layer in ctx.layers], reader
