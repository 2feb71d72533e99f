"""A network keeps its feature buffers for the backward pass, and nothing else."""

import pytest
import torch

from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import IMAGENET, OF_ALL_KINDS, assert_same_training, doubles, naive_and_buffer
from tests.support.tensor_measurements import LiveStorages, bytes_saved_for_backward


def test_nothing_is_kept_where_no_gradient_is_wanted():
    network = naive_and_buffer()[1]
    network.features.requires_grad_(False)
    with LiveStorages() as storages:
        logits = network(doubles())
    averages = 8 * 4 * network.classifier.in_features
    assert storages.live_bytes(without=[logits, *network.parameters(), *network.buffers()]) == averages


# The blocks of SMALL: images times pixels, channels at the end, layers.
BLOCKS = [(4 * 8 * 8, 8 + 3 * 4, 3), (4 * 4 * 4, 10 + 2 * 4, 2)]
BOTTLENECK = 16
# "buffer" keeps the bottlenecks of the second block, where the peak is far from that of the first one.
BOTTLENECKS = {"buffer": [0, 2], "buffer_fast": [3, 2], "buffer_small": [0, 2]}


def kept_bytes_in_closed_form(strategy: str) -> int:
    # Buffers, three numbers for each of their channels and two for each of a bottleneck, and bottlenecks.
    of_buffers = sum(8 * rows * channels + 3 * 8 * channels for rows, channels, _ in BLOCKS)
    of_statistics = sum(2 * 8 * BOTTLENECK * layers for *_, layers in BLOCKS)
    counts = zip(BLOCKS, BOTTLENECKS[strategy], strict=True)
    return of_buffers + of_statistics + sum(8 * rows * BOTTLENECK * count for (rows, *_), count in counts)


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@pytest.mark.parametrize("drop_rate", [0, 0.2])
def test_a_network_keeps_its_feature_buffers_alone(drop_rate, strategy):
    network = naive_and_buffer(strategy, drop_rate=drop_rate)[1]
    images = doubles()
    others = [images, *network.parameters(), *network.buffers()]
    expected = kept_bytes_in_closed_form(strategy)
    expected += sum(rows * 4 * layers for rows, _, layers in BLOCKS) if drop_rate else 0
    averages = 8 * 4 * 18
    assert bytes_saved_for_backward(lambda: network(images), without=others) == expected + averages
    with LiveStorages() as storages:
        logits = network(images)
    assert storages.live_bytes(without=[logits, *others]) == expected + averages


def test_the_imagenet_stem_keeps_the_maps_of_its_convolution_alone():
    network = naive_and_buffer(**IMAGENET)[1]
    images = doubles(side=32)
    others = [images, *network.parameters(), *network.buffers()]
    maps, averages = 8 * 4 * 16 * 16 * 8, 8 * 4 * 18
    with LiveStorages() as storages:
        logits = network(images)
    assert storages.live_bytes(without=[logits, *others]) == kept_bytes_in_closed_form("buffer") + maps + averages


@OF_ALL_KINDS
def test_saved_tensors_can_be_moved_away_and_back(config):
    naive, network = naive_and_buffer(**config)
    assert_same_training(naive, network, doubles(), precision=torch.autograd.graph.save_on_cpu)
