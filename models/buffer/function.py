"""A dense block with its transition, as one autograd function over one feature buffer.

The backward pass finds the buffer, three numbers for each of its channels, two for each channel of a bottleneck, and a
mask wherever values are dropped; and bottlenecks, as many as are asked for. Everything else is computed again from the
buffer, layer by layer. `feature_buffer` has the mathematics.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..layers import DenseLayer, PlainLayer
from .autograd import flatten, refuse_derivatives, unflatten
from .layers import LayerPass, forward_layer
from .norms import Statistics
from .parameters import parameters_of_layer
from .passes import BlockBackward, BlockForward
from .rows import Shape, as_nchw
from .transition import (
    FinalNormPass,
    NoTransitionPass,
    TransitionPass,
    forward_transition,
    parameters_of_transition,
)


def block_over_buffer(
    x: Tensor,
    block: nn.Module,
    transition: nn.Module | None,
    *,
    num_bottlenecks: int = 0,
    averages: bool = True,
    is_small: bool = False,
) -> Tensor:
    """Run a dense block and its transition in training mode, keeping little for the backward pass.

    Args:
        x: Input of the block (N, C0, H, W), in any memory format.
        block: A `DenseBlock`.
        transition: A `Transition`, the final norm of a network, or None for the block alone.
        num_bottlenecks: How many of the last layers keep their bottlenecks for the backward pass.
        averages: Whether ReLU and the average over all pixels follow a final norm.
        is_small: Whether to take less memory and more time; see `Workspace`.

    Returns:
        The result of the transition, (N, C', H // 2, W // 2). With a final norm: norm, ReLU and average, (N, C), or
        without `averages` the norm alone, (N, C, H, W). With None: all channels of the block, (N, C, H, W). A result
        with four dimensions has the memory format of `x`.
    """
    layers = layers_of(block)
    parameters = [tensor for layer in layers for tensor in parameters_of_layer(layer)]
    settings = Settings(num_bottlenecks, averages, is_small)
    return BlockFunction.apply(x, layers, transition, settings, *parameters, *parameters_of_transition(transition))


def layers_of(block: nn.Module) -> list[DenseLayer | PlainLayer]:
    """Return the dense layers of a block, in order."""
    layers: list[DenseLayer | PlainLayer] = []
    for layer in block.children():
        assert isinstance(layer, DenseLayer | PlainLayer)
        layers.append(layer)
    return layers


class Settings(NamedTuple):
    """`num_bottlenecks`, `averages` and `is_small` of `block_over_buffer`."""

    num_bottlenecks: int
    averages: bool
    is_small: bool


class Saved(NamedTuple):
    """All that the backward pass of a block needs.

    Attributes:
        rows: The rows of the feature buffer (R, C).
        statistics: The statistics of its channels.
        shape: (N, H, W).
        num_inputs: Channels C0 of the block's input.
        layers: The layers, in order.
        transition: The transition, the final norm or nothing.
        is_small: See `Workspace`.
    """

    rows: Tensor
    statistics: Statistics
    shape: Shape
    num_inputs: int
    layers: list[LayerPass]
    transition: TransitionPass | FinalNormPass | NoTransitionPass
    is_small: bool


class BlockFunction(torch.autograd.Function):
    """`block_over_buffer`, as a function of x and all parameters in the order in which they are used."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: list[DenseLayer | PlainLayer],
        transition: nn.Module | None,
        settings: Settings,
        *parameters: Tensor,
    ) -> Tensor:
        """Fill the buffer layer by layer, and let the transition read it.

        The parameters are given so that autograd knows of them. They are those of the modules, which are used.
        """
        dtype, memory_format = computing_dtype(x), _memory_format(x)  # those that autocast gives outside
        num_features = x.shape[1] + sum(layer.growth_rate for layer in layers)
        first_kept = len(layers) - settings.num_bottlenecks
        with _plainly_on_device_of(x):
            block = BlockForward(x, num_features, dtype, memory_format, is_small=settings.is_small)
            layer_passes = [
                forward_layer(layer, block, keeps_bottleneck=i >= first_kept) for i, layer in enumerate(layers)
            ]
            transition_pass, result = forward_transition(transition, block, averages=settings.averages)
            block.running.update()
            result = result.contiguous(memory_format=memory_format) if result.dim() == 4 else result
        saved = Saved(
            rows=block.work.rows,
            statistics=block.buffer.statistics,
            shape=block.work.shape,
            num_inputs=x.shape[1],
            layers=layer_passes,
            transition=transition_pass,
            is_small=settings.is_small,
        )
        ctx.structure, tensors = flatten(saved)
        ctx.save_for_backward(*tensors)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs; they cannot be differentiated again."""
        with torch.no_grad(), _plainly_on_device_of(grad):
            gradients = _backward(unflatten(ctx.structure, ctx.saved_tensors), grad)
        return refuse_derivatives(gradients) if torch.is_grad_enabled() else gradients


def _backward(saved: Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Go back through the transition and the layers, and accumulate the gradients in one buffer."""
    block = BlockBackward(saved.rows, saved.statistics, saved.shape, is_small=saved.is_small)
    grad_parameters: list[tuple[Tensor, ...]] = [saved.transition.backward(grad, block)]
    for layer in reversed(saved.layers):
        grad_parameters.append(layer.backward(block))
    grad_x = as_nchw(block.gradients.take_inputs(saved.num_inputs), saved.shape)
    return grad_x, None, None, None, *(tensor for group in reversed(grad_parameters) for tensor in group)


def computing_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast, if it is on, would run convolutions of x."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype


def is_autocast(x: Tensor) -> bool:
    """Tell whether autocast would run convolutions of x in another dtype. Device `meta`, for one, has no autocast."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


@contextmanager
def _plainly_on_device_of(x: Tensor) -> Iterator[None]:
    """Compute without autocast, and launch kernels on the device of x: Triton launches on the current one."""
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(x.device.type):
            stack.enter_context(torch.autocast(x.device.type, enabled=False))
        if x.device.type == "cuda" and not isinstance(x, FakeTensor):
            stack.enter_context(torch.cuda.device(x.device))
        yield


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of x; with one channel, x has both formats, and is contiguous to PyTorch too."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
