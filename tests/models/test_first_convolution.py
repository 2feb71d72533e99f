"""Weights for images with another number of channels: the adapted convolution, and what is said and refused."""

import pytest
import torch
import torch.nn.functional as F

from models import DenseNet, fitting_weights, input_channels, load_weights
from models.first_convolution import adapt_input_channels
from tests.support.network_pairs import IMAGENET, SMALL
from tests.support.perturbed_weights import with_dotted_names, with_prefixes, with_random_norms


def networks(*channels, **config):
    torch.manual_seed(0)
    return [with_random_norms(DenseNet(**(SMALL | config), in_channels=c)).double().eval() for c in channels]


def repeated(grey, channels):
    return grey.expand(-1, channels, -1, -1)


# The response to an image of equal channels stays, by linearity: sum_i w_i x = (sum_i w_i) x, and M / N copies of each
# of N weights, times N / M, have the same sum.
@pytest.mark.parametrize("config", [SMALL, IMAGENET], ids=["small", "imagenet"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (5, 1), (1, 4), (3, 6), (2, 8)])
def test_logits_of_an_image_of_equal_channels_stay(old, new, config):
    trained, other = networks(old, new, **config)
    assert load_weights(other, trained.state_dict(), adapt_input=True) == []
    grey = torch.randn(3, 1, 33, 33, dtype=torch.float64)
    expected = trained(repeated(grey, old))
    assert (other(repeated(grey, new)) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("old", "new", "taken"), [(3, 5, [0, 1, 2, 0, 1]), (3, 2, [0, 1]), (2, 3, [0, 1, 0])])
def test_channels_are_taken_in_turn_and_scaled(old, new, taken):
    weight = torch.randn(4, old, 3, 3, dtype=torch.float64)
    images = torch.randn(1, new, 8, 8, dtype=torch.float64)
    expected = sum(F.conv2d(images[:, i : i + 1], weight[:, j : j + 1]) for i, j in enumerate(taken)) * old / new
    torch.testing.assert_close(F.conv2d(images, adapt_input_channels(weight, new)), expected, rtol=1e-12, atol=1e-12)


def test_halves_are_summed_without_rounding():
    weight = torch.tensor([2048.0, 1.0, 1.0], dtype=torch.float16).view(1, 3, 1, 1)  # 2048 + 1 is 2048 in 16 bits
    assert adapt_input_channels(weight, 1).item() == 2050


def test_the_number_of_channels_in_the_file_is_told_whatever_its_names_are():
    trained, other = networks(3, 1, small_inputs=False)
    weights = {"state_dict": with_prefixes("model.")(with_dotted_names(trained.state_dict()))}
    assert input_channels(other, weights) == 3
    load_weights(other, weights, adapt_input=True)
    assert input_channels(other, other.state_dict()) == 1


def test_it_needs_to_be_asked_for():
    trained, other = networks(3, 1)
    with pytest.raises(ValueError, match=r"unfit: features\.conv0\.weight is \(8, 3, 3, 3\), not \(8, 1, 3, 3\)$"):
        load_weights(other, trained.state_dict())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(8, 3, 7, 7),
        lambda: torch.zeros(9, 3, 3, 3),
        lambda: torch.zeros(8, 0, 3, 3),
        lambda: torch.zeros(8, 27),
        lambda: torch.zeros(8, 3, 3, 3, dtype=torch.int64),
        lambda: torch.zeros(8, 3, 3, 3, dtype=torch.complex64),
        lambda: torch.zeros(8, 3, 3, 3).to_sparse(),
        lambda: torch.nested.nested_tensor([torch.ones(3)]),
        lambda: "text",
        lambda: None,
    ],
)
def test_a_convolution_that_differs_in_more_is_still_refused(make):
    trained, *others = networks(3, 1, 5)
    for other in others:
        with pytest.raises(ValueError, match=r"the weights do not fit the network.*; unfit: features\.conv0\.weight"):
            fitting_weights(other, trained.state_dict() | {"features.conv0.weight": make()}, adapt_input=True)
