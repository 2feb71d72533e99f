"""The names of a network's state, which saved weights depend on, and its values at the start."""

from math import erf, sqrt

import pytest
import torch
from torch import nn

from models import DROP_PLACES, DenseNet, densenet_bc, densenet_plain

SMALL_STATE = [
    "features.conv0.weight",
    "features.denseblock1.denselayer1.norm1.weight",
    "features.denseblock1.denselayer1.norm1.bias",
    "features.denseblock1.denselayer1.norm1.running_mean",
    "features.denseblock1.denselayer1.norm1.running_var",
    "features.denseblock1.denselayer1.norm1.num_batches_tracked",
    "features.denseblock1.denselayer1.conv1.weight",
    "features.denseblock1.denselayer1.norm2.weight",
    "features.denseblock1.denselayer1.norm2.bias",
    "features.denseblock1.denselayer1.norm2.running_mean",
    "features.denseblock1.denselayer1.norm2.running_var",
    "features.denseblock1.denselayer1.norm2.num_batches_tracked",
    "features.denseblock1.denselayer1.conv2.weight",
    "features.denseblock1.denselayer2.norm1.weight",
    "features.denseblock1.denselayer2.norm1.bias",
    "features.denseblock1.denselayer2.norm1.running_mean",
    "features.denseblock1.denselayer2.norm1.running_var",
    "features.denseblock1.denselayer2.norm1.num_batches_tracked",
    "features.denseblock1.denselayer2.conv1.weight",
    "features.denseblock1.denselayer2.norm2.weight",
    "features.denseblock1.denselayer2.norm2.bias",
    "features.denseblock1.denselayer2.norm2.running_mean",
    "features.denseblock1.denselayer2.norm2.running_var",
    "features.denseblock1.denselayer2.norm2.num_batches_tracked",
    "features.denseblock1.denselayer2.conv2.weight",
    "features.transition1.norm.weight",
    "features.transition1.norm.bias",
    "features.transition1.norm.running_mean",
    "features.transition1.norm.running_var",
    "features.transition1.norm.num_batches_tracked",
    "features.transition1.conv.weight",
    "features.denseblock2.denselayer1.norm1.weight",
    "features.denseblock2.denselayer1.norm1.bias",
    "features.denseblock2.denselayer1.norm1.running_mean",
    "features.denseblock2.denselayer1.norm1.running_var",
    "features.denseblock2.denselayer1.norm1.num_batches_tracked",
    "features.denseblock2.denselayer1.conv1.weight",
    "features.denseblock2.denselayer1.norm2.weight",
    "features.denseblock2.denselayer1.norm2.bias",
    "features.denseblock2.denselayer1.norm2.running_mean",
    "features.denseblock2.denselayer1.norm2.running_var",
    "features.denseblock2.denselayer1.norm2.num_batches_tracked",
    "features.denseblock2.denselayer1.conv2.weight",
    "features.norm_final.weight",
    "features.norm_final.bias",
    "features.norm_final.running_mean",
    "features.norm_final.running_var",
    "features.norm_final.num_batches_tracked",
    "classifier.weight",
    "classifier.bias",
]
IMAGENET_STEM_STATE = [
    "features.norm0.weight",
    "features.norm0.bias",
    "features.norm0.running_mean",
    "features.norm0.running_var",
    "features.norm0.num_batches_tracked",
]


@pytest.mark.parametrize("place", DROP_PLACES)
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_state_dict_names(small_inputs, efficient, place):
    config = {"drop_rate": 0.2, "drop_where": place, "small_inputs": small_inputs, "efficient": efficient}
    network = DenseNet(4, (2, 1), num_init_features=8, **config)
    expected = SMALL_STATE if small_inputs else [SMALL_STATE[0], *IMAGENET_STEM_STATE, *SMALL_STATE[1:]]
    assert list(network.state_dict()) == expected


@pytest.mark.parametrize("place", DROP_PLACES)
def test_state_dict_names_without_bottlenecks_are_those_of_the_rest(place):
    network = DenseNet(4, (2, 1), num_init_features=8, bn_size=None, drop_rate=0.2, drop_where=place)
    expected = [name for name in SMALL_STATE if ".norm2." not in name and ".conv2." not in name]
    assert list(network.state_dict()) == expected
    assert network.features.denseblock1.denselayer2.conv1.weight.shape == (4, 12, 3, 3)


@pytest.mark.parametrize("build", [densenet_plain, densenet_bc])
def test_convolutions_start_normal_with_variance_by_kernel_and_output_channels(build):
    torch.manual_seed(0)
    convolutions = [module for module in build(40, 12).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 39
    standardised = []
    for convolution in convolutions:
        height, width = convolution.kernel_size
        std = sqrt(2 / (height * width * convolution.out_channels))
        numbers = convolution.weight.detach().double().flatten() / std
        # Standard errors of the mean and of the standard deviation of n numbers drawn from a standard normal.
        n = numbers.numel()
        assert abs(numbers.mean().item()) < 5 / sqrt(n)
        assert abs(numbers.std().item() - 1) < 5 / sqrt(2 * n)
        standardised.append(numbers)
    numbers = torch.cat(standardised)
    share_within_one_std = erf(1 / sqrt(2))
    sampling_error = sqrt(share_within_one_std * (1 - share_within_one_std) / numbers.numel())
    assert abs((numbers.abs() < 1).double().mean().item() - share_within_one_std) < 5 * sampling_error


def test_norms_start_as_identity_and_the_classifier_without_bias():
    network = densenet_bc(16, 4)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 6 + 2 + 1
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
        assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert torch.equal(network.classifier.bias, torch.zeros(10))
    assert network.classifier.weight.abs().sum() > 0
