"""A small network, weights that differ from its own everywhere, and the names that other programs give them."""

import re

import torch
from torch import nn

from models import DenseNet
from tests.support.tensor_measurements import norms

SHAPE = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8}


def with_random_norms(network: nn.Module) -> nn.Module:
    """Return the network with norms that matter: none is the identity, and no two have the same statistics."""
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in norms(network):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked.fill_(7)
    return network


def small_network(num_classes: int = 10, **settings) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(**SHAPE, num_classes=num_classes, **settings)


def other_weights(num_classes: int = 10) -> dict:
    """Return weights of a small network that differ from those of `small_network()` everywhere."""
    torch.manual_seed(2)
    network = with_random_norms(DenseNet(**SHAPE, num_classes=num_classes))
    network.classifier.bias.data.normal_()
    return network.state_dict()


def with_dotted_names(weights: dict) -> dict:
    """Rename weights as in torchvision's files: `norm.1` in dense layers, `norm5` at the end, no counters."""
    renamed = {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name): weights[name] for name in weights}
    renamed = {name.replace("norm_final", "norm5"): value for name, value in renamed.items()}
    return {name: value for name, value in renamed.items() if "num_batches_tracked" not in name}


def with_prefixes(*prefixes: str):
    return lambda weights: {"".join(prefixes) + name: value for name, value in weights.items()}
