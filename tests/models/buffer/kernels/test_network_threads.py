"""Replicas in threads, as of nn.DataParallel, run by kernels."""

import copy

import pytest

from tests.support.kernel_networks import CAPABILITIES, LIBRARY, by_kernels, naive_and_buffer
from tests.support.tensor_measurements import (
    assert_undisturbed_by_threads,
    largest_difference,
    random_images,
    train_on_replicas_in_threads,
)
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = [*MARKS, pytest.mark.skipif(DEVICE == "cuda", reason="replicas on one device stand for those on several")]


@CAPABILITIES
def test_replicas_in_threads_are_the_same(capability):
    with by_kernels(capability) as launches:
        expected, actual = (
            train_on_replicas_in_threads(network, random_images(side=4)) for network in naive_and_buffer()
        )
    assert launches
    assert largest_difference(actual, expected) < 1e-4
    assert actual["features.denseblock2.denselayer1.norm1.num_batches_tracked"] == 1


def test_networks_in_threads_do_not_disturb_each_other():
    network = naive_and_buffer(block_config=(1,))[1]
    with by_kernels(LIBRARY):
        assert_undisturbed_by_threads([copy.deepcopy(network) for _ in range(3)], random_images(side=4, images=2))
