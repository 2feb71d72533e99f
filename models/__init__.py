"""DenseNets in plain PyTorch: this folder imports torch only and can be copied into another project."""

from .densenet import DenseNet, densenet_bc

__all__ = ["DenseNet", "densenet_bc"]
