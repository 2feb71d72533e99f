"""Recomputation leaves running statistics alone, and the objects that hold them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models import recompute as recompute_module
from models.layers import DenseLayer
from models.recompute import FrozenRunningStatistics
from tests.support.network_pairs import assert_buffers_stay, assert_same_bits, naive_and_checkpoint
from tests.support.tensor_measurements import norms, random_images, train, unequal


def test_cumulative_averages_are_the_same():
    networks = naive_and_checkpoint()
    for network in networks:
        for norm in norms(network):
            norm.momentum = None
    assert_same_bits(*networks, random_images())


def test_norms_without_running_statistics_are_the_same():
    networks = naive_and_checkpoint()
    for network in networks:
        for norm in norms(network):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    assert_same_bits(*networks, random_images())


def test_a_norm_in_eval_mode_inside_a_training_network_is_the_same():
    networks = naive_and_checkpoint()
    for network in networks:
        network.features.denseblock1.denselayer2.norm1.eval()
    assert_same_bits(*networks, random_images())
    frozen = networks[1].features.denseblock1.denselayer2.norm1
    assert frozen.num_batches_tracked == 0
    assert networks[1].features.denseblock1.denselayer1.norm1.num_batches_tracked == 3


def test_the_comparison_catches_statistics_that_are_updated_twice(monkeypatch):
    monkeypatch.setattr(recompute_module, "FrozenRunningStatistics", lambda norm: nullcontext())
    naive, efficient = naive_and_checkpoint()
    expected, actual = (train(network, random_images(), steps=1)[0] for network in (naive, efficient))
    recomputed = {f"{name}." for name, _ in naive.named_modules() if name.endswith("norm1")}
    assert len(recomputed) == 5
    buffers = {name for name, _ in naive.named_buffers() if name.rpartition(".")[0] + "." in recomputed}
    assert len(buffers) == 15
    assert set(unequal(expected, actual)) == buffers
    assert actual["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_normalise_as_usual_and_touch_one_module_only(training):
    torch.manual_seed(0)
    frozen, other = (nn.BatchNorm2d(3).train(training) for _ in range(2))
    images = 2 + 3 * random_images()
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    with FrozenRunningStatistics(frozen):
        assert torch.equal(frozen(images), other(images))
    assert unequal(before, dict(frozen.named_buffers())) == []
    assert bool(unequal(before, dict(other.named_buffers()))) == training


def test_buffers_stay_the_same_registered_objects():
    assert_buffers_stay(naive_and_checkpoint()[1], random_images())


def test_a_failing_recomputation_gives_the_buffers_back():
    def fail(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("out of memory")

    layer = DenseLayer(3, growth_rate=2, bn_size=2, drop_rate=0, checkpoint=True)
    loss = layer([random_images()]).sum()
    objects = dict(layer.named_buffers())
    values = {name: buffer.clone() for name, buffer in objects.items()}
    layer.relu1.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    after = dict(layer.named_buffers())
    assert all(after[name] is objects[name] for name in objects)
    assert unequal(values, after) == []


def test_statistics_without_gradients_are_the_same():
    naive, efficient = naive_and_checkpoint()
    with torch.no_grad():
        logits, efficient_logits = (network(random_images()) for network in (naive, efficient))
    assert torch.equal(logits, efficient_logits)
    assert unequal(naive.state_dict(), efficient.state_dict()) == []
    assert efficient.features.norm_final.num_batches_tracked == 1
