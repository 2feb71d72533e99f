"""Networks for images of any number of channels differ in the first convolution alone."""

import pytest
import torch
from torch import nn

from models import DenseNet, densenet121, densenet_bc, densenet_plain
from tests.support.network_pairs import IMAGENET, SMALL, naive_and_buffer
from tests.support.tensor_measurements import largest_difference, train


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Weights of the first convolution for one more channel: its outputs times the pixels of its kernel.
@pytest.mark.parametrize(
    ("build", "published", "per_channel"),
    [
        (densenet_bc, 176_122, 24 * 9),  # L = 40, k = 12
        (densenet_plain, 1_019_722, 16 * 9),  # the same, counted in test_parameters
        (densenet121, 7_978_856, 64 * 49),
    ],
)
def test_each_channel_adds_its_weights_of_the_first_convolution(build, published, per_channel):
    with torch.device("meta"):
        assert [count(build(in_channels=c)) - published for c in (1, 2, 3, 7)] == [
            per_channel * more for more in (-2, -1, 0, 4)
        ]


def test_names_and_all_other_shapes_stay():
    plain, other = (DenseNet(**SMALL, in_channels=c).state_dict() for c in (3, 5))
    assert list(plain) == list(other)
    assert [name for name in plain if plain[name].shape != other[name].shape] == ["features.conv0.weight"]


@pytest.mark.parametrize("strategy", ["checkpoint", "buffer", "buffer_fast", "buffer_small"])
@pytest.mark.parametrize("in_channels", [1, 5])
@pytest.mark.parametrize("config", [SMALL, IMAGENET], ids=["small", "imagenet"])
def test_gradients_of_every_strategy_are_those_of_the_naive_network(config, in_channels, strategy):
    naive, efficient = naive_and_buffer(strategy, **config, in_channels=in_channels)
    images = torch.randn(4, in_channels, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for left, right in zip(*(train(network, images, steps=2) for network in (naive, efficient)), strict=True):
        assert largest_difference(right, left) <= 1e-10
    assert naive.features.conv0.weight.grad.abs().amax((0, 2, 3)).min() > 0


def test_one_grey_channel_gives_the_logits_of_three_equal_ones():
    torch.manual_seed(0)
    colour, grey = (DenseNet(**SMALL, in_channels=c).double().eval() for c in (3, 1))
    state = colour.state_dict()
    weight = state["features.conv0.weight"]
    grey.load_state_dict(state | {"features.conv0.weight": weight[:, :1] + weight[:, 1:2] + weight[:, 2:]})
    images = torch.randn(3, 1, 9, 9, dtype=torch.float64)
    expected = colour(images.expand(-1, 3, -1, -1))
    assert (grey(images) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("in_channels", [0, -1, 1.0, "3", None])
def test_no_number_of_channels_is_refused(in_channels):
    message = rf"^in_channels is {in_channels!r}, but must be a whole number, 1 or more$"
    for build in (DenseNet, densenet_bc, densenet_plain, densenet121):
        with pytest.raises(ValueError, match=message):
            build(in_channels=in_channels)
