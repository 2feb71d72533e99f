"""DenseNets in plain PyTorch: this folder imports torch only and can be copied into another project."""

from .densenet import STRATEGIES, DenseNet, densenet_bc

__all__ = ["STRATEGIES", "DenseNet", "densenet_bc"]
