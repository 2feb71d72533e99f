"""Networks have the published numbers of parameters, and depth counts their weighted layers."""

import pytest
import torch
from torch import nn

from models import DenseNet, densenet_bc, densenet_plain

BC_PARAMETERS = [
    (40, 12, 10, 176_122),
    (100, 12, 10, 769_162),
    (100, 12, 100, 800_032),
    (250, 24, 10, 15_324_406),
    (190, 40, 10, 25_624_430),
    (190, 40, 100, 25_821_620),
    (40, 36, 10, 1_542_682),
    (40, 48, 10, 2_733_130),
    (40, 60, 10, 4_261_690),
]
# Depth, growth rate, parameters, and in millions as the paper's second table has them.
PLAIN_PARAMETERS = [(40, 12, 1_019_722, 1.0), (100, 12, 6_979_642, 7.0), (100, 24, 27_249_082, 27.2)]
IMAGENET_PARAMETERS = [
    (32, (6, 12, 24, 16), 64, 7_978_856),
    (32, (6, 12, 32, 32), 64, 14_149_480),
    (32, (6, 12, 48, 32), 64, 20_013_928),
    (48, (6, 12, 36, 24), 96, 28_681_000),
    (32, (6, 12, 64, 48), 64, 33_337_704),
]


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("depth", "growth_rate", "num_classes", "expected"), BC_PARAMETERS)
def test_densenet_bc_has_the_published_number_of_parameters(depth, growth_rate, num_classes, expected):
    with torch.device("meta"):
        network = densenet_bc(depth, growth_rate, num_classes=num_classes)
    assert count_parameters(network) == expected


def plain_parameters(depth: int, growth_rate: int, num_classes: int) -> int:
    """Count them: two for each channel of a norm, one for each pair of channels and pixel of a filter."""
    num_layers, channels = (depth - 4) // 3, 16
    total = 3 * 9 * channels
    for block in range(3):
        read = [channels + i * growth_rate for i in range(num_layers)]
        total += sum(2 * c + 9 * c * growth_rate for c in read)
        channels += num_layers * growth_rate
        total += 2 * channels + (channels**2 if block < 2 else 0)
    return total + (channels + 1) * num_classes


@pytest.mark.parametrize(("depth", "growth_rate", "expected", "millions"), PLAIN_PARAMETERS)
def test_densenet_has_the_published_number_of_parameters(depth, growth_rate, expected, millions):
    with torch.device("meta"):
        network = densenet_plain(depth, growth_rate)
    assert count_parameters(network) == expected == plain_parameters(depth, growth_rate, num_classes=10)
    assert round(expected / 1e6, 1) == millions


@pytest.mark.parametrize("num_classes", [1, 100])
def test_densenet_counts_a_row_of_the_classifier_for_each_class(num_classes):
    assert count_parameters(densenet_plain(10, 4, num_classes=num_classes)) == plain_parameters(10, 4, num_classes)


@pytest.mark.parametrize(("growth_rate", "block_config", "num_init_features", "expected"), IMAGENET_PARAMETERS)
def test_imagenet_form_has_the_published_number_of_parameters(growth_rate, block_config, num_init_features, expected):
    with torch.device("meta"):
        network = DenseNet(
            growth_rate=growth_rate,
            block_config=block_config,
            num_init_features=num_init_features,
            num_classes=1000,
            small_inputs=False,
        )
    assert count_parameters(network) == expected


def test_builders_default_to_the_smallest_published_networks():
    assert count_parameters(densenet_bc()) == 176_122
    assert count_parameters(densenet_plain()) == 1_019_722
    assert densenet_plain().strategy == densenet_bc().strategy == "buffer"


@pytest.mark.parametrize(
    ("build", "depth"),
    [*((densenet_bc, depth) for depth in (10, 16, 40, 100)), (densenet_plain, 7), (densenet_plain, 100)],
)
def test_depth_is_the_number_of_weighted_layers(build, depth):
    with torch.device("meta"):
        network = build(depth)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
