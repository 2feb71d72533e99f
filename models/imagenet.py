"""The DenseNets for ImageNet by name. This file needs no torch, so that a program can list them before it imports it.

References:
    Huang et al., Densely Connected Convolutional Networks, 2017 (arXiv:1608.06993), table 1. Its authors trained
    densenet161 too.
"""

from typing import NamedTuple


class ImageNetNetwork(NamedTuple):
    """Shape of a network.

    Attributes:
        depth: Weighted layers L: first convolution, two in each dense layer, three transitions, classifier. The blocks
            that the paper lists for DenseNet-264 make one more.
        growth_rate: Channels k that each dense layer adds.
        block_config: Dense layers in each block.
    """

    depth: int
    growth_rate: int
    block_config: tuple[int, int, int, int]


IMAGENET_NETWORKS = {  # from the smallest to the largest
    "densenet121": ImageNetNetwork(121, 32, (6, 12, 24, 16)),
    "densenet169": ImageNetNetwork(169, 32, (6, 12, 32, 32)),
    "densenet201": ImageNetNetwork(201, 32, (6, 12, 48, 32)),
    "densenet161": ImageNetNetwork(161, 48, (6, 12, 36, 24)),
    "densenet264": ImageNetNetwork(264, 32, (6, 12, 64, 48)),
}
