"""The convolutional part of a DenseNet: dense blocks, and a backbone of them with everything around.

Both decide in each call whether to run over feature buffers or to call their modules.

Letters of the shape comments: N images of I channels, C channels of feature maps, H x W pixels, k growth rate, m dense
layers in a block.
"""

from collections import OrderedDict
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .buffer.network import is_buffer_wanted, run_block, run_blocks, run_stem
from .layers import DenseLayer, PlainLayer, call_in_order
from .tracing import warn
from .unmodified import are_unwatched, register, why_classes_modified, why_modified


class DenseBlock(nn.Module):
    """A chain of dense layers `denselayer1`, `denselayer2`, ..., each of which reads all feature maps so far.

    Args:
        num_layers: Number m of layers.
        num_input_features: Channels C of the input.
        growth_rate: Channels k that each layer adds.
        bn_size: The bottleneck of a layer has bn_size * k channels. None: layers have no bottleneck.
        drop_rate: Probability of zeroing an output value of a layer in training.
        strategy: How the backward pass gets intermediate results of the forward pass; see `DenseNet`.
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
            layer: DenseLayer | PlainLayer
            if bn_size is None:
                layer = PlainLayer(num_features, growth_rate, drop_rate, checkpoint)
            else:
                layer = DenseLayer(num_features, growth_rate, bn_size, drop_rate, checkpoint, bottleneck_drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + m * k, H, W): the input, followed by the new feature maps of each layer."""
        if is_buffer_wanted(self.strategy, x, training=self.training):
            result = run_block(self, x, strategy=self.strategy)
            if result is not None:
                return result
        features = [x]
        for layer in self.children():
            features.append(layer(features))
        return torch.cat(features, 1)


class Features(nn.Sequential):
    """A stem, then dense blocks with a transition after each, except for the last, which a norm layer follows.

    Maps images (N, I, H, W) to normalised feature maps (N, C, H', W'); no ReLU has been applied to these yet. With a
    buffer strategy, each block and the module after it run over one feature buffer in training. A slice of the modules
    keeps the strategy.

    Args:
        modules: The modules by name, in order.
        strategy: How the backward pass gets intermediate results of the forward pass; see `DenseNet`.
    """

    def __init__(self, modules: "OrderedDict[str, nn.Module]", *, strategy: str = "naive"):
        super().__init__(modules)
        self.strategy = strategy

    @overload
    def __getitem__(self, index: slice, /) -> "Features": ...

    @overload
    def __getitem__(self, index: int, /) -> nn.Module: ...

    def __getitem__(self, index: int | slice, /) -> nn.Module:
        """Return one of the modules, or some of them as features with the same strategy."""
        part = super().__getitem__(index)
        if isinstance(index, slice) and isinstance(part, Features):
            part.strategy = self.strategy
        return part

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, I, H, W) to feature maps (N, C, H', W')."""
        if is_buffer_wanted(self.strategy, images, training=self.training):
            return _run_over_buffers(self, images, strategy=self.strategy, averages=False)
        return call_in_order(self, images)


def averages_of(features: nn.Module, images: Tensor, *, strategy: str, training: bool) -> Tensor:
    """Compute ReLU and the average over all pixels of `features(images)`: (N, I, H, W) to (N, C).

    Args:
        features: `Features`, or another module in its place.
        images: (N, I, H, W).
        strategy: How the backward pass gets intermediate results of the forward pass; see `DenseNet`.
        training: Whether the network is in training mode.
    """
    if is_buffer_wanted(strategy, images, training=training):
        reason = why_modified("features", features) or why_classes_modified([features])
        if not reason and isinstance(features, nn.Sequential):
            return _run_over_buffers(features, images, strategy=strategy, averages=True)
        if reason and not isinstance(features, Features):  # which uses buffers when it is called, too
            warn(reason)
    return average(features(images), inplace=are_unwatched(features) and _may_overwrite(*features.children()))


def average(x: Tensor, *, inplace: bool = False) -> Tensor:
    """Compute ReLU, then the average over all pixels: (N, C, H, W) to (N, C). With `inplace`, x is overwritten."""
    return F.adaptive_avg_pool2d(F.relu(x, inplace=inplace), 1).flatten(1)


def _run_over_buffers(features: nn.Sequential, images: Tensor, *, strategy: str, averages: bool) -> Tensor:
    """Call a stem, and run each dense block with the module after it over one feature buffer.

    Args:
        features: A stem, then dense blocks with a transition after each, except for the last, which a norm layer
            follows. Otherwise the modules are called, and a warning says so.
        images: (N, I, H, W).
        strategy: One of `BUFFER_STRATEGIES`.
        averages: Whether ReLU and the average over all pixels follow.

    Returns:
        (N, C) with `averages`, otherwise (N, C, H', W').
    """
    stem, blocks = _parts_of(features)
    if blocks:
        x = run_blocks(blocks, run_stem(stem, images), strategy=strategy, averages=averages)
    else:
        warn("its features have been rearranged")
        x = call_in_order(features, images)
    # Over a buffer, the average has been computed already.
    return average(x, inplace=_may_overwrite(*features)) if averages and x.dim() == 4 else x


def _parts_of(features: nn.Sequential) -> tuple[list[nn.Module], list[tuple[nn.Module, nn.Module]]]:
    """Return the stem, and each block with the module after it; no blocks if these do not alternate."""
    modules = list(features)
    is_block = [isinstance(module, DenseBlock) for module in modules]
    first = is_block.index(True) if any(is_block) else len(modules)
    if is_block[first:] != [True, False] * ((len(modules) - first) // 2):
        return [], []
    return modules[:first], list(zip(modules[first::2], modules[first + 1 :: 2], strict=True))


def _may_overwrite(*modules: nn.Module) -> bool:
    """Tell whether the result of modules that were called in order may be overwritten: nobody else has it."""
    return bool(modules) and isinstance(modules[-1], nn.BatchNorm2d) and are_unwatched(modules[-1])


register(DenseBlock, Features)
