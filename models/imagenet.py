"""The DenseNets for ImageNet by name.

Nothing here needs torch before a network is built, so that a program can list the networks without importing it.

References:
    Huang et al., Densely Connected Convolutional Networks, 2017 (arXiv:1608.06993), table 1. Its authors trained
    densenet161 too.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .densenet import DenseNet


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
        in_channels: int = 3,
    ) -> "DenseNet":
        """Build the network: images (N, in_channels, H, W), normalised per channel, to logits (N, num_classes).

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
            in_channels=in_channels,
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
