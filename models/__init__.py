"""DenseNets in plain PyTorch: this folder imports torch only and can be copied into another project."""

from .densenet import (
    DEPTH_RULES,
    DROP_PLACES,
    IMAGENET_NETWORKS,
    STRATEGIES,
    DenseNet,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    densenet264,
    densenet_bc,
    densenet_plain,
)
from .weights import fitting_weights, load_weights, require_finite, torchvision_names, weight_places

__all__ = [
    "DEPTH_RULES",
    "DROP_PLACES",
    "IMAGENET_NETWORKS",
    "STRATEGIES",
    "DenseNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "densenet_bc",
    "densenet_plain",
    "fitting_weights",
    "load_weights",
    "require_finite",
    "torchvision_names",
    "weight_places",
]
