"""The parts of a DenseNet as plain modules: dense layers of both kinds, dense blocks and transitions.

Letters of the paper and of the shape comments: N images, C channels, H x W pixels, k growth rate, m dense layers in a
block.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .buffer.network import is_buffer_wanted, run_block
from .calls import call_in_order
from .recompute import may_recompute, recompute_in_backward
from .unmodified import register


class PlainLayer(nn.Module):
    """Make k new feature maps from all the maps that a block has so far: norm, ReLU, 3x3.

    Args:
        num_input_features: Channels C of all inputs together.
        growth_rate: Channels k that the layer makes.
        drop_rate: Probability of zeroing an output value in training.
        checkpoint: Recompute what leads to the convolution instead of keeping it for the backward pass.
    """

    def __init__(self, num_input_features: int, growth_rate: int, drop_rate: float, checkpoint: bool):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(num_input_features, growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop_rate = drop_rate
        self.checkpoint = checkpoint

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features [(N, C_i, H, W)], sum of C_i = C, to new features (N, k, H, W)."""
        return _drop(_first_convolution(self, features), self.drop_rate, self.training)


class DenseLayer(nn.Module):
    """Make k new feature maps from all the maps that a block has so far: norm, ReLU, 1x1, norm, ReLU, 3x3.

    Args:
        num_input_features: Channels C of all inputs together.
        growth_rate: Channels k that the layer makes.
        bn_size: The 1x1 convolution makes bn_size * k channels (the bottleneck).
        drop_rate: Probability of zeroing an output value in training.
        checkpoint: Recompute what leads to the 1x1 convolution instead of keeping it for the backward pass.
        bottleneck_drop_rate: Probability of zeroing a value that the 1x1 convolution makes in training.
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

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features [(N, C_i, H, W)], sum of C_i = C, to new features (N, k, H, W)."""
        z = _drop(_first_convolution(self, features), self.bottleneck_drop_rate, self.training)
        return _drop(call_in_order((self.norm2, self.relu2, self.conv2), z), self.drop_rate, self.training)


def _first_convolution(layer: PlainLayer | DenseLayer, features: Sequence[Tensor]) -> Tensor:
    """Concatenate features [(N, C_i, H, W)] and convolve them for the first time: (N, C', H, W)."""

    def compute(*inputs: Tensor) -> Tensor:
        return call_in_order((layer.norm1, layer.relu1, layer.conv1), torch.cat(inputs, 1))

    if layer.checkpoint and layer.training and torch.is_grad_enabled() and may_recompute(features[0]):
        return recompute_in_backward(compute, *features, norm=layer.norm1)
    return compute(*features)


def _drop(maps: Tensor, drop_rate: float, is_training: bool) -> Tensor:
    return F.dropout(maps, drop_rate, is_training) if drop_rate else maps


class DenseBlock(nn.Module):
    """A chain of dense layers `denselayer1`, `denselayer2`, ..., each reading all that came before it.

    Args:
        num_layers: Number m of layers.
        num_input_features: Channels C that the block starts with.
        growth_rate: Channels k that each layer adds.
        bn_size: The bottleneck of a layer has bn_size * k channels. None: layers have no bottleneck.
        drop_rate: Probability of zeroing an output value of a layer in training.
        strategy: How the backward pass finds what the forward pass computed; see `DenseNet`.
        bottleneck_drop_rate: Probability of zeroing a value of a bottleneck in training.
    """

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        growth_rate: int,
        bn_size: int | None,
        drop_rate: float,
        strategy: str = "naive",
        bottleneck_drop_rate: float = 0,
    ):
        super().__init__()
        self.strategy = strategy
        checkpoint = strategy == "checkpoint"
        for i in range(num_layers):
            num_features = num_input_features + i * growth_rate
            if bn_size is None:
                layer = PlainLayer(num_features, growth_rate, drop_rate, checkpoint)
            else:
                layer = DenseLayer(num_features, growth_rate, bn_size, drop_rate, checkpoint, bottleneck_drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + m * k, H, W): the input, then the maps of each layer."""
        if is_buffer_wanted(self.strategy, x, training=self.training):
            maps = run_block(self, x, strategy=self.strategy)
            if maps is not None:
                return maps
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Fewer channels and a quarter of the pixels between two blocks: (N, C, H, W) to (N, C', H // 2, W // 2).

    Args:
        num_input_features: Channels C.
        num_output_features: Channels C'.
        drop_rate: Probability of zeroing a value that the convolution makes in training.
    """

    def __init__(self, num_input_features: int, num_output_features: int, drop_rate: float = 0):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(num_input_features, num_output_features, kernel_size=1, bias=False)
        if drop_rate:
            self.drop = nn.Dropout(drop_rate)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H // 2, W // 2)."""
        return call_in_order(self, x)


register(PlainLayer, DenseLayer, DenseBlock, Transition)
