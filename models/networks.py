"""The published networks as numbers: depths of those for small images, and the DenseNets for ImageNet by name.

Nothing here needs torch before a network is built, so that a program can list the networks without importing it.

References:
    Huang et al., Densely Connected Convolutional Networks, 2017 (arXiv:1608.06993), section 3 and table 1. Its authors
    trained densenet161 too.
"""

from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .densenet import DenseNet


class DepthRule(NamedTuple):
    """The depths L that a network of three blocks of m dense layers each can have.

    First convolution, two transitions and classifier make 4.

    Attributes:
        step: Weighted layers that one more dense layer in each block adds: L = step * m + 4.
    """

    step: int

    @property
    def smallest(self) -> int:
        """The depth with one dense layer in each block."""
        return self.step + 4

    @property
    def formula(self) -> str:
        """The rule for people, such as "6m + 4 with m >= 1"."""
        return f"{self.step}m + 4 with m >= 1"

    def block_config(self, depth: int) -> tuple[int, int, int]:
        """Return the number of dense layers in each block.

        Raises:
            ValueError: If no network has this depth.
        """
        is_whole = isinstance(depth, Integral) and not isinstance(depth, bool)
        if not is_whole or depth < self.smallest or (depth - 4) % self.step:
            examples = ", ".join(str(self.smallest + i * self.step) for i in range(3))
            raise ValueError(f"depth is {depth!r}, but must be {self.formula}: {examples}, ...")
        layers = (depth - 4) // self.step
        return layers, layers, layers


# Keys are the functions that build the networks. A bottleneck layer has two convolutions, a plain layer has one.
DEPTH_RULES = {"densenet_bc": DepthRule(6), "densenet_plain": DepthRule(3)}


class ImageNetNetwork(NamedTuple):
    """A DenseNet for ImageNet.

    Attributes:
        depth: Weighted layers L: first convolution, two in each dense layer, three transitions, classifier. The blocks
            that the paper lists for DenseNet-264 add up to one more.
        growth_rate: Channels k that each dense layer adds. The first convolution has 2k output channels.
        block_config: Number of dense layers in each block.
    """

    depth: int
    growth_rate: int
    block_config: tuple[int, int, int, int]

    def build(
        self,
        num_classes: int = 1000,
        *,
        bn_size: int | None = 4,
        compression: float = 0.5,
        drop_rate: float = 0,
        drop_where: str = "layers",
        efficient: bool | str = True,
    ) -> "DenseNet":
        """Build the network: images (N, 3, H, W), normalised per channel, to logits (N, num_classes).

        H and W are 32 or more. The arguments are those of `DenseNet`.

        Raises:
            ValueError: If an argument is out of its range.
        """
        from .densenet import DenseNet

        return DenseNet(
            growth_rate=self.growth_rate,
            block_config=self.block_config,
            num_init_features=2 * self.growth_rate,
            num_classes=num_classes,
            small_inputs=False,
            bn_size=bn_size,
            compression=compression,
            drop_rate=drop_rate,
            drop_where=drop_where,
            efficient=efficient,
        )


# From the smallest to the largest: 8.0, 14.1, 20.0, 28.7 and 33.3 million parameters for 1,000 classes. A network that
# is added here can be imported from `models`, and has its name on the command line.
IMAGENET_NETWORKS = {
    "densenet121": ImageNetNetwork(121, 32, (6, 12, 24, 16)),
    "densenet169": ImageNetNetwork(169, 32, (6, 12, 32, 32)),
    "densenet201": ImageNetNetwork(201, 32, (6, 12, 48, 32)),
    "densenet161": ImageNetNetwork(161, 48, (6, 12, 36, 24)),
    "densenet264": ImageNetNetwork(264, 32, (6, 12, 64, 48)),
}
