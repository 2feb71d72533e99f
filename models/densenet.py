"""The paper's DenseNets for small images and for ImageNet, with bottlenecks and compression (BC) or without.

Letters of the paper and of the shape comments: N images, C channels, H x W pixels, L weighted layers (the depth),
k growth rate, m dense layers in a block.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import sqrt
from numbers import Integral

import torch
from torch import Tensor, nn

from .buffer.network import BUFFER_STRATEGIES
from .depths import DEPTH_RULES
from .features import DenseBlock, Features, averages_of
from .layers import Transition

# How the backward pass gets intermediate results of the forward pass; see DenseNet.
STRATEGIES = ("naive", "checkpoint", *BUFFER_STRATEGIES)

# Where dropout acts; see DenseNet.
DROP_PLACES = ("layers", "convolutions")


class DenseNet(nn.Module):
    """Classify images with densely connected convolutional layers.

    Maps images (N, in_channels, H, W), normalised per channel, to logits (N, num_classes) of the same dtype. H and W
    are at least 2 ** (blocks - 1) for small images and 2 ** (blocks + 1) for the ImageNet form.

    Args:
        growth_rate: Channels k that each dense layer adds, 1 or more.
        block_config: Number of dense layers in each block, at least one block.
        compression: The fraction of its input channels that a transition keeps, above 0 and at most 1.
        num_init_features: Output channels of the first convolution; the paper's BC networks use 2k.
        bn_size: The bottleneck of a dense layer has bn_size * k channels. None: there are no bottlenecks, a layer is
            norm, ReLU and a 3x3 convolution of its whole input.
        drop_rate: Probability of dropping a value in training, at least 0 and below 1.
        num_classes: Number of logits.
        small_inputs: Start with one 3x3 convolution, as for 32x32 images; otherwise start as for ImageNet: 7x7
            convolution with stride 2, norm, ReLU and max pooling.
        efficient: How the backward pass gets intermediate results of the forward pass. False or "naive": all are kept,
            which grows with the square of a block's layers. True or "buffer": each block keeps one copy of its feature
            maps and recomputes the rest. "buffer_fast": each block also keeps the results of its 1x1 convolutions; this
            is the fastest, in about twice the memory. "buffer_small": on a CPU, the backward pass recomputes those in
            smaller parts, twice; this takes the least memory. "checkpoint": concatenation, norm and ReLU are
            recomputed, and all results equal those of the naive network bit for bit; with the other strategies,
            gradients and running statistics are equal up to rounding. The strategy changes neither names nor shapes of
            parameters. It acts in training, for `features` alone too; in eval mode and without gradients, plain modules
            run. Under torch.compile and exporters only "checkpoint" acts, under other tracers and the transforms of
            torch.func none of them does, and a warning says so.
        drop_where: Where values are dropped. "layers": after the last convolution of each dense layer. "convolutions":
            after every convolution except the first one of the network, as in the paper. The buffer strategies keep a
            byte for each value that may be dropped. For bottlenecks, which have 4k channels, that is about as much in a
            block as its feature buffer in 32 bits.
        in_channels: Channels of the images, 1 or more: 1 for grey ones, 3 for colours.

    Raises:
        ValueError: If an argument is out of its range. The message gives argument, value and range.

    References:
        Huang et al., Densely Connected Convolutional Networks, 2017 (arXiv:1608.06993).
        Pleiss et al., Memory-Efficient Implementation of DenseNets, 2017 (arXiv:1707.06990), for "checkpoint".
    """

    def __init__(
        self,
        growth_rate: int = 12,
        block_config: Sequence[int] = (16, 16, 16),
        compression: float = 0.5,
        num_init_features: int = 24,
        bn_size: int | None = 4,
        drop_rate: float = 0,
        num_classes: int = 10,
        small_inputs: bool = True,
        efficient: bool | str = False,
        *,
        drop_where: str = "layers",
        in_channels: int = 3,
    ):
        super().__init__()
        for name, value in (
            ("growth_rate", growth_rate),
            ("num_init_features", num_init_features),
            ("num_classes", num_classes),
            ("in_channels", in_channels),
        ):
            _require(_is_count(value), name, value, "a whole number, 1 or more")
        has_good_size = bn_size is None or _is_count(bn_size)
        _require(has_good_size, "bn_size", bn_size, "a whole number, 1 or more, or None")
        counts = len(block_config) > 0 and all(map(_is_count, block_config))
        _require(counts, "block_config", block_config, "whole numbers of layers, 1 or more")
        _require(0 < compression <= 1, "compression", compression, "above 0 and at most 1")
        _require(0 <= drop_rate < 1, "drop_rate", drop_rate, "at least 0 and below 1")
        allowed = f"True, False or one of {', '.join(STRATEGIES)}"
        _require(isinstance(efficient, bool) or efficient in STRATEGIES, "efficient", efficient, allowed)
        _require(drop_where in DROP_PLACES, "drop_where", drop_where, f"one of {', '.join(DROP_PLACES)}")
        self.in_channels = in_channels
        self.strategy = efficient if isinstance(efficient, str) else ("buffer" if efficient else "naive")

        self.features = Features(_stem(in_channels, num_init_features, small_inputs), strategy=self.strategy)
        inner_rate = drop_rate if drop_where == "convolutions" else 0  # after 1x1 convolutions
        num_features = num_init_features
        for i, num_layers in enumerate(block_config, start=1):
            block = DenseBlock(num_layers, num_features, growth_rate, bn_size, drop_rate, self.strategy, inner_rate)
            self.features.add_module(f"denseblock{i}", block)
            num_features += num_layers * growth_rate
            if i < len(block_config):
                num_kept = int(num_features * compression)
                _require(num_kept >= 1, "compression", compression, f"enough to keep one of {num_features} channels")
                self.features.add_module(f"transition{i}", Transition(num_features, num_kept, inner_rate))
                num_features = num_kept
        self.features.add_module("norm_final", nn.BatchNorm2d(num_features))
        self.classifier = nn.Linear(num_features, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.classifier(averages_of(self.features, images, strategy=self.strategy, training=self.training))

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw convolutions from a normal distribution of variance 2 / (k_h k_w c_out); norms start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kernel_height, kernel_width = module.kernel_size
                module.weight.normal_(std=sqrt(2 / (kernel_height * kernel_width * module.out_channels)))
            elif isinstance(module, nn.Linear):
                module.bias.zero_()


def densenet_bc(
    depth: int = 40,
    growth_rate: int = 12,
    *,
    num_classes: int = 10,
    drop_rate: float = 0,
    efficient: bool | str = True,
    small_inputs: bool = True,
    drop_where: str = "layers",
    in_channels: int = 3,
) -> DenseNet:
    """Build the paper's DenseNet-BC for 32x32 images: three equal dense blocks of bottleneck layers.

    Maps images (N, in_channels, 32, 32), normalised per channel, to logits (N, num_classes) of the same dtype.

    Args:
        depth: Weighted layers L = 6m + 4: first convolution, m bottleneck layers of two convolutions in each of
            three blocks, two transitions, classifier.
        growth_rate: Channels k that each layer adds to its input. The first convolution has 2k output channels.
        num_classes: Number of logits.
        drop_rate: Probability of dropping a value in training, at least 0 and below 1.
        efficient: Recompute intermediate results in the backward pass instead of keeping them; see `DenseNet`.
        small_inputs: False: for larger images, start as for ImageNet, with a quarter of the height and width.
        drop_where: "layers": drop after each 3x3 convolution of a dense layer. "convolutions": drop after every
            convolution except the first, as in the paper.
        in_channels: Channels of the images, 1 or more.

    Raises:
        ValueError: If `depth` is not 6m + 4 with m >= 1, or another argument is out of its range.

    References:
        Huang et al., Densely Connected Convolutional Networks, 2017, section 3 (arXiv:1608.06993).
    """
    return DenseNet(
        growth_rate=growth_rate,
        block_config=DEPTH_RULES["densenet_bc"].block_config(depth),
        num_init_features=2 * growth_rate,
        num_classes=num_classes,
        drop_rate=drop_rate,
        efficient=efficient,
        small_inputs=small_inputs,
        drop_where=drop_where,
        in_channels=in_channels,
    )


def densenet_plain(
    depth: int = 40,
    growth_rate: int = 12,
    *,
    num_classes: int = 10,
    drop_rate: float = 0,
    efficient: bool | str = True,
    small_inputs: bool = True,
    drop_where: str = "layers",
    in_channels: int = 3,
) -> DenseNet:
    """Build the paper's plain DenseNet for 32x32 images: like `densenet_bc`, without bottlenecks and compression.

    Args:
        depth: Weighted layers L = 3m + 4: first convolution, m layers of one convolution in each of three blocks, two
            transitions, classifier.
        growth_rate: Channels k that each layer adds to its input. The first convolution has 16 output channels.
        num_classes: See `densenet_bc`.
        drop_rate: See `densenet_bc`.
        efficient: See `densenet_bc`.
        small_inputs: See `densenet_bc`.
        drop_where: See `densenet_bc`.
        in_channels: See `densenet_bc`.

    Raises:
        ValueError: If `depth` is not 3m + 4 with m >= 1, or another argument is out of its range.
    """
    return DenseNet(
        growth_rate=growth_rate,
        block_config=DEPTH_RULES["densenet_plain"].block_config(depth),
        compression=1,
        num_init_features=16,
        bn_size=None,
        num_classes=num_classes,
        drop_rate=drop_rate,
        efficient=efficient,
        small_inputs=small_inputs,
        drop_where=drop_where,
        in_channels=in_channels,
    )


def _stem(in_channels: int, num_init_features: int, small_inputs: bool) -> OrderedDict[str, nn.Module]:
    """Build the layers in front of the first block, by name.

    They map images (N, in_channels, H, W) to (N, C, H, W), or to (N, C, H / 4, W / 4) in the ImageNet form.
    """
    if small_inputs:
        return OrderedDict(conv0=nn.Conv2d(in_channels, num_init_features, kernel_size=3, padding=1, bias=False))
    return OrderedDict(
        conv0=nn.Conv2d(in_channels, num_init_features, kernel_size=7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(num_init_features),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {allowed}")
