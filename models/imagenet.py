"""The DenseNets for ImageNet, by the names under which they are known.

Settings are `drop_rate`, `drop_where`, `bn_size`, `compression` and `efficient` (True by default here) of `DenseNet`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .densenet import DenseNet


def densenet121(num_classes: int = 1000, **settings: Any) -> DenseNet:
    """Build DenseNet-121 (k = 32), which has 7,978,856 parameters for 1,000 classes; settings as above."""
    return _build(32, (6, 12, 24, 16), num_classes, **settings)


def densenet169(num_classes: int = 1000, **settings: Any) -> DenseNet:
    """Build DenseNet-169 (k = 32), which has 14,149,480 parameters for 1,000 classes; settings as above."""
    return _build(32, (6, 12, 32, 32), num_classes, **settings)


def densenet201(num_classes: int = 1000, **settings: Any) -> DenseNet:
    """Build DenseNet-201 (k = 32), which has 20,013,928 parameters for 1,000 classes; settings as above."""
    return _build(32, (6, 12, 48, 32), num_classes, **settings)


def densenet161(num_classes: int = 1000, **settings: Any) -> DenseNet:
    """Build DenseNet-161 (k = 48), which has 28,681,000 parameters for 1,000 classes; settings as above."""
    return _build(48, (6, 12, 36, 24), num_classes, **settings)


def densenet264(num_classes: int = 1000, **settings: Any) -> DenseNet:
    """Build DenseNet-264 (k = 32), which has 33,337,704 parameters for 1,000 classes; settings as above."""
    return _build(32, (6, 12, 64, 48), num_classes, **settings)


class ImageNetNetwork(NamedTuple):
    """One of the networks.

    Attributes:
        depth: Weighted layers L: first convolution, two in each dense layer, three transitions, classifier. The blocks
            that the paper lists for DenseNet-264 make one more.
        growth_rate: Channels k that each dense layer adds.
        build: Takes `num_classes` and settings, and returns the network.
    """

    depth: int
    growth_rate: int
    build: Callable[..., DenseNet]


# Smallest first. All but densenet161 are in table 1 of the paper (arXiv:1608.06993); its authors trained that one too.
IMAGENET_NETWORKS = {
    "densenet121": ImageNetNetwork(121, 32, densenet121),
    "densenet169": ImageNetNetwork(169, 32, densenet169),
    "densenet201": ImageNetNetwork(201, 32, densenet201),
    "densenet161": ImageNetNetwork(161, 48, densenet161),
    "densenet264": ImageNetNetwork(264, 32, densenet264),
}


def _build(growth_rate: int, block_config: tuple[int, ...], num_classes: int, **settings: Any) -> DenseNet:
    """Map images (N, 3, H, W), normalised per channel, to logits (N, num_classes); H and W are 32 or more."""
    shape = {"growth_rate": growth_rate, "block_config": block_config, "num_init_features": 2 * growth_rate}
    return DenseNet(**shape, num_classes=num_classes, small_inputs=False, **{"efficient": True, **settings})
