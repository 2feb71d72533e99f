"""Copies, replicas and threads recompute as one network does."""

import copy

import pytest
from torch import nn

from models import DenseNet
from tests.support.network_pairs import (
    DROPPING,
    PLAIN,
    SMALL,
    assert_copies_train_on,
    assert_same_bits,
    naive_and_checkpoint,
)
from tests.support.tensor_measurements import (
    assert_undisturbed_by_threads,
    random_images,
    train_on_replicas_in_threads,
    unequal,
)


def test_a_copy_in_any_form_trains_on_as_the_original():
    network, empty = naive_and_checkpoint(drop_rate=0.2)[1], DenseNet(**SMALL, drop_rate=0.2)
    assert_copies_train_on(network, empty, random_images())


@pytest.mark.parametrize("config", [SMALL | DROPPING, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_data_parallel_without_a_gpu_is_the_same(config):
    naive, efficient = map(nn.DataParallel, naive_and_checkpoint(**config))
    assert_same_bits(naive, efficient, random_images())


@pytest.mark.parametrize(("config", "num_parameters"), [(SMALL, 38), (PLAIN, 23)], ids=["bottlenecks", "plain"])
def test_replicas_in_threads_are_the_same(config, num_parameters):
    naive, efficient = map(train_on_replicas_in_threads, naive_and_checkpoint(**config))
    assert unequal(naive, efficient) == []
    assert len([name for name in naive if name.startswith("gradient of ")]) == num_parameters
    assert efficient["features.denseblock2.denselayer1.norm1.num_batches_tracked"] == 1


def test_networks_trained_in_threads_do_not_disturb_each_other():
    networks = [copy.deepcopy(network) for network in naive_and_checkpoint()[1:] for _ in range(4)]
    assert_undisturbed_by_threads(networks, random_images())
