"""The parts of a DenseNet as plain modules: dense layers of both kinds, and transitions.

Letters of the paper and of the shape comments: N images, C channels, H x W pixels, k growth rate.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import may_recompute, recompute_in_backward
from .unmodified import are_unwatched, register


class PlainLayer(nn.Module):
    """Compute k new feature maps from all that a block has so far: norm, ReLU, 3x3 convolution.

    Args:
        num_input_features: Channels C of all inputs together.
        growth_rate: Channels k of the output.
        drop_rate: Probability of zeroing an output value in training.
        checkpoint: Recompute the input of the convolution in the backward pass, instead of keeping it.
    """

    def __init__(self, num_input_features: int, growth_rate: int, drop_rate: float, checkpoint: bool):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(num_input_features, growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop_rate = drop_rate
        self.checkpoint = checkpoint

    @property
    def num_input_features(self) -> int:
        """Channels C of all inputs together."""
        return self.norm1.num_features

    @property
    def growth_rate(self) -> int:
        """Channels k of the output."""
        return self.conv1.out_channels

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features [(N, C_i, H, W)], sum of C_i = C, to new features (N, k, H, W)."""
        return _drop(_first_convolution(self, features), self.drop_rate, self.training)


class DenseLayer(nn.Module):
    """Compute k new feature maps from all that a block has so far: norm, ReLU, 1x1, norm, ReLU, 3x3 convolution.

    Args:
        num_input_features: Channels C of all inputs together.
        growth_rate: Channels k of the output.
        bn_size: The 1x1 convolution has bn_size * k output channels (the bottleneck).
        drop_rate: Probability of zeroing an output value in training.
        checkpoint: Recompute the input of the 1x1 convolution in the backward pass, instead of keeping it.
        bottleneck_drop_rate: Probability of zeroing a value of the bottleneck in training.
    """

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int,
        drop_rate: float,
        checkpoint: bool,
        bottleneck_drop_rate: float = 0,
    ):
        super().__init__()
        bottleneck_features = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(num_input_features, bottleneck_features, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck_features)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(bottleneck_features, growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop_rate = drop_rate
        self.bottleneck_drop_rate = bottleneck_drop_rate
        self.checkpoint = checkpoint

    @property
    def num_input_features(self) -> int:
        """Channels C of all inputs together."""
        return self.norm1.num_features

    @property
    def bottleneck_features(self) -> int:
        """Channels of the bottleneck."""
        return self.conv1.out_channels

    @property
    def growth_rate(self) -> int:
        """Channels k of the output."""
        return self.conv2.out_channels

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features [(N, C_i, H, W)], sum of C_i = C, to new features (N, k, H, W)."""
        z = _drop(_first_convolution(self, features), self.bottleneck_drop_rate, self.training)
        return _drop(call_in_order((self.norm2, self.relu2, self.conv2), z), self.drop_rate, self.training)


class Transition(nn.Sequential):
    """Reduce channels and pixels between two blocks: (N, C, H, W) to (N, C', H // 2, W // 2).

    Norm, ReLU, 1x1 convolution, dropout if there is any, average pooling.

    Args:
        num_input_features: Channels C.
        num_output_features: Channels C'.
        drop_rate: Probability of zeroing a value after the convolution in training.
    """

    def __init__(self, num_input_features: int, num_output_features: int, drop_rate: float = 0):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(num_input_features, num_output_features, kernel_size=1, bias=False)
        if drop_rate:
            self.drop = nn.Dropout(drop_rate)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)

    @property
    def dropout(self) -> nn.Dropout | None:
        """The dropout after the convolution, if there is any."""
        return next((module for module in self if isinstance(module, nn.Dropout)), None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H // 2, W // 2)."""
        return call_in_order(self, x)


def call_in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return the result of `nn.Sequential`, with the same gradients.

    A ReLU overwrites the result of a norm layer in front of it, which saves a copy of all feature maps, unless
    something watches either of them and may hold that result: a hook, a replaced method, a tracer.
    """
    previous: nn.Module | None = None
    for module in modules:
        follows_norm = type(module) is nn.ReLU and type(previous) is nn.BatchNorm2d
        x = x.relu_() if previous is not None and follows_norm and are_unwatched(previous, module) else module(x)
        previous = module
    return x


def _first_convolution(layer: PlainLayer | DenseLayer, features: Sequence[Tensor]) -> Tensor:
    """Concatenate features [(N, C_i, H, W)], and apply the first norm, ReLU and convolution: (N, C', H, W)."""

    def compute(*inputs: Tensor) -> Tensor:
        return call_in_order((layer.norm1, layer.relu1, layer.conv1), torch.cat(inputs, 1))

    if layer.checkpoint and layer.training and torch.is_grad_enabled() and may_recompute(features[0]):
        return recompute_in_backward(compute, *features, norm=layer.norm1)
    return compute(*features)


def _drop(x: Tensor, drop_rate: float, is_training: bool) -> Tensor:
    return F.dropout(x, drop_rate, is_training) if drop_rate else x


register(PlainLayer, DenseLayer, Transition)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Networks that were pickled as a whole by earlier versions look for dense blocks here.
        if name == "DenseBlock":
            return import_module(".features", __package__).DenseBlock
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
