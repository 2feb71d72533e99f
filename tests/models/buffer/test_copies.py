"""Copies, replicas and processes train as one network over its feature buffer."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from models import DenseNet
from tests.support.network_pairs import (
    DROPPING,
    OF_ALL_KINDS,
    PLAIN,
    ROUNDING,
    SMALL,
    assert_copies_train_on,
    assert_same_training,
    doubles,
    gradients,
    naive_and_buffer,
)
from tests.support.tensor_measurements import (
    assert_undisturbed_by_threads,
    largest_difference,
    naive_and,
    norms,
    train,
    train_on_replicas_in_threads,
)


@pytest.mark.parametrize("config", [SMALL | {"drop_rate": 0.2}, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_a_copy_in_any_form_trains_on_as_the_original(config):
    network, empty = naive_and_buffer(**config)[1], DenseNet(**config, efficient="buffer").double()
    assert_copies_train_on(network, empty, doubles())


def test_names_of_the_state_are_those_of_the_naive_network():
    naive, buffer = naive_and_buffer()
    train(buffer, doubles())
    assert list(buffer.state_dict()) == list(naive.state_dict())


@OF_ALL_KINDS
def test_data_parallel_without_a_gpu_is_the_same(config):
    naive, buffer = map(nn.DataParallel, naive_and_buffer(**config))
    assert_same_training(naive, buffer, doubles())


@pytest.mark.parametrize(("config", "num_parameters"), [(SMALL, 38), (PLAIN, 23)], ids=["bottlenecks", "plain"])
def test_replicas_in_threads_are_the_same(config, num_parameters, blocks_over_buffers):
    naive, buffer = map(train_on_replicas_in_threads, naive_and("buffer", **config))
    assert len(blocks_over_buffers) == 4
    assert largest_difference(buffer, naive) < 1e-4
    assert len([name for name in buffer if name.startswith("gradient of ")]) == num_parameters
    assert buffer["features.denseblock2.denselayer1.norm1.num_batches_tracked"] == 1


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
def test_networks_trained_in_threads_do_not_disturb_each_other(config):
    networks = [copy.deepcopy(network) for network in naive_and_buffer(**config)[1:] for _ in range(4)]
    assert_undisturbed_by_threads(networks, doubles())


def train_as_one_of_two(rank: int, folder: Path) -> None:
    """Save the gradients of a process that has every second image. Its norms are frozen."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = naive_and_buffer()[1]
    for norm in norms(network):
        norm.eval()
    parallel = nn.parallel.DistributedDataParallel(network)
    F.cross_entropy(parallel(doubles()[rank::2]), torch.full((2,), rank)).backward()
    torch.save(gradients(network), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(train_as_one_of_two, (tmp_path,), nprocs=2)
    naive = naive_and_buffer()[0]
    for norm in norms(naive):
        norm.eval()
    F.cross_entropy(naive(doubles()), torch.tensor([0, 1, 0, 1])).backward()
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert largest_difference(actual, gradients(naive)) <= ROUNDING
