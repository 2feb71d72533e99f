"""The networks for ImageNet are those of the paper, by name."""

import pytest
import torch
from torch import nn

import models
from models import IMAGENET_NETWORKS

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "densenet264": 33_337_704,
}


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_published_network_is_there_and_exported():
    assert IMAGENET_NETWORKS.keys() == PARAMETERS.keys()
    for name, entry in IMAGENET_NETWORKS.items():
        assert getattr(models, name) == entry.build
        assert name in models.__all__


@pytest.mark.parametrize("name", PARAMETERS)
def test_name_depth_growth_rate_and_parameters_belong_together(name):
    entry = IMAGENET_NETWORKS[name]
    with torch.device("meta"):
        network = entry.build()
    weighted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert name == f"densenet{entry.depth}"
    assert len(weighted) == entry.depth + (name == "densenet264")  # 2 * (6 + 12 + 64 + 48) + 5 are 265
    assert network.features.denseblock1.denselayer1.conv2.out_channels == entry.growth_rate
    assert network.features.conv0.out_channels == 2 * entry.growth_rate
    blocks = [block for part, block in network.features.named_children() if part.startswith("denseblock")]
    assert tuple(len(list(block.children())) for block in blocks) == entry.block_config
    assert count_parameters(network) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_arguments_are_passed_on(name):
    build = IMAGENET_NETWORKS[name].build
    with torch.device("meta"):
        default, other = build(), build(7, drop_rate=0.2, efficient="checkpoint")
    assert (default.strategy, other.strategy) == ("buffer", "checkpoint")
    assert (default.classifier.out_features, other.classifier.out_features) == (1000, 7)
    layers = [layer for layer in other.modules() if hasattr(layer, "drop_rate")]
    assert {layer.drop_rate for layer in layers} == {0.2}
    assert "conv0" in dict(default.features.named_children())
    assert "pool0" in dict(default.features.named_children())


def test_what_makes_it_this_network_cannot_be_set():
    for name in ("growth_rate", "block_config", "num_init_features", "small_inputs"):
        with pytest.raises(TypeError, match=name):
            models.densenet121(**{name: 1})


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("drop_rate", 1), ("efficient", "eficient")])
def test_a_wrong_argument_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, but must be"):
        models.densenet121(**{name: value})


@pytest.mark.parametrize("side", [32, 64])
def test_small_images_train(side):
    network = models.densenet121(5)
    logits = network(torch.randn(2, 3, side, side))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None for parameter in network.parameters())
