"""Over the feature buffer the same values are dropped."""

import pytest
import torch

from models import DROP_PLACES
from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import DROPPING, FORMATS, OF_ALL_KINDS, assert_same_training, doubles, naive_and_buffer


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("drop_rate", [0.2, 0.9])
@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@OF_ALL_KINDS
def test_the_same_values_are_dropped(config, strategy, memory_format, drop_rate):
    networks = naive_and_buffer(strategy, **(config | {"drop_rate": drop_rate}))
    naive, buffer = (network.to(memory_format=memory_format) for network in networks)
    # The records of training include the state of the random numbers after each step.
    assert_same_training(naive, buffer, doubles().contiguous(memory_format=memory_format))


@pytest.mark.parametrize("place", DROP_PLACES)
@pytest.mark.parametrize("bn_size", [1, None])
def test_the_same_values_of_a_single_channel_are_dropped(bn_size, place):
    widths = {"growth_rate": 1, "num_init_features": 1, "bn_size": bn_size}
    assert_same_training(*naive_and_buffer(**widths, drop_rate=0.2, drop_where=place), doubles())


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
def test_rates_that_change_later_act(strategy):
    networks = naive_and_buffer(strategy, **DROPPING)
    for network in networks:
        layers = [network.get_submodule(f"features.denseblock1.denselayer{i}") for i in (1, 2, 3)]
        layers[0].bottleneck_drop_rate = layers[1].drop_rate = network.features.transition1.drop.p = 0
        layers[2].bottleneck_drop_rate = 0.5
    assert_same_training(*networks, doubles())


def test_another_seed_drops_other_values():
    network = naive_and_buffer(drop_rate=0.2)[1]
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(network(doubles()))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
