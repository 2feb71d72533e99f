"""Compilers, exporters and tracers see modules that are called, and no feature buffer."""

import warnings

import pytest
import torch

from tests.twins import PLAIN, SMALL, assert_same_training, doubles, naive_and_buffer


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
def test_a_compiled_network_trains_the_same(config, blocks_over_buffers):
    naive, buffer = naive_and_buffer(**(config | {"block_config": (1, 1)}))
    buffer.compile(backend="eager")
    assert_same_training(naive, buffer, doubles())
    assert blocks_over_buffers == []


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_network_gives_the_same_logits(training, blocks_over_buffers):
    network = naive_and_buffer(block_config=(1, 1))[1].train(training)
    exported = torch.export.export(network, (doubles(),)).module()
    assert blocks_over_buffers == []
    torch.testing.assert_close(exported(doubles()), network(doubles()), rtol=1e-12, atol=1e-12)


def test_a_traced_network_gives_the_same_logits(blocks_over_buffers):
    network = naive_and_buffer(block_config=(1, 1))[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of an old tracer, and of what it cannot record.
        traced = torch.jit.trace(network, (doubles(),), check_trace=False)
    assert blocks_over_buffers == []
    torch.testing.assert_close(traced(doubles()), network(doubles()), rtol=1e-12, atol=1e-12)
