"""A small network, weights that are nowhere equal to its own, and the names that other programs give them."""

import re

import torch
from torch import nn

from models import DenseNet
from tests.support.tensor_measurements import norms

SHAPE = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8}


def perturbed(network: nn.Module) -> nn.Module:
    """The network with norm layers that matter: none is the identity, and no two have the same statistics."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in norms(network):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked.fill_(7)
    return network


def small(num_classes: int = 10, **settings) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(**SHAPE, num_classes=num_classes, **settings)


def other(num_classes: int = 10) -> dict:
    """The weights of a small network that is nowhere equal to `small()`."""
    torch.manual_seed(2)
    network = perturbed(DenseNet(**SHAPE, num_classes=num_classes))
    network.classifier.bias.data.normal_()
    return network.state_dict()


def dotted(weights: dict) -> dict:
    """The names in torchvision's files of weights: `norm.1` in dense layers, `norm5` at the end, no counters."""
    renamed = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name): weights[name] for name in weights}
    renamed = {name.replace("norm_final", "norm5"): value for name, value in renamed.items()}
    return {name: value for name, value in renamed.items() if "num_batches_tracked" not in name}


def prefixed(*prefixes: str):
    return lambda weights: {"".join(prefixes) + name: value for name, value in weights.items()}
