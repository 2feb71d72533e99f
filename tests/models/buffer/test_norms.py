"""Over the feature buffer norms of any settings have the statistics and gradients of plain autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import (
    KINDS,
    LAYER,
    ROUNDING,
    assert_buffers_stay,
    assert_same_training,
    doubles,
    naive_and_buffer,
)
from tests.support.tensor_measurements import largest_difference, norms, record


def set_norm(norm: nn.BatchNorm2d, mode: str, eps: float, momentum: float | None) -> None:
    norm.eps, norm.momentum = eps, momentum
    norm.train(not mode.startswith("frozen"))
    norm.track_running_stats = not mode.endswith("untracked")
    if mode.startswith("without"):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.data())
def test_norms_of_any_settings_are_the_same_to_rounding(data):
    strategy, config = data.draw(st.sampled_from(BUFFER_STRATEGIES)), data.draw(st.sampled_from(list(KINDS.values())))
    networks = naive_and_buffer(strategy, **config)
    for pair in zip(*map(norms, networks), strict=True):
        mode = data.draw(st.sampled_from(["usual", "usual", "frozen", "untracked", "frozen, untracked", "without"]))
        eps = data.draw(st.sampled_from([1e-5, 1e-5, 1e-3, 0.5]))
        momentum = data.draw(st.sampled_from([0.1, 0.7, None]))
        for norm in pair:
            set_norm(norm, mode, eps, momentum)
    assert_same_training(*networks, doubles())


@pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
def test_running_statistics_are_the_same(momentum):
    networks = naive_and_buffer()
    for network in networks:
        for norm in norms(network):
            norm.momentum = momentum
    assert_same_training(*networks, doubles(images=2))
    assert {int(norm.num_batches_tracked) for norm in norms(networks[1])} == {3}


def test_running_variances_are_unbiased():
    network = naive_and_buffer()[1]
    images = doubles(images=2, side=2)
    norm = network.features.denseblock1.denselayer1.norm1
    norm.momentum = 1.0
    network(images)
    maps = network.features.conv0(images)
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3), correction=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-12, atol=1e-15)


def test_buffers_stay_the_same_registered_objects():
    assert_buffers_stay(naive_and_buffer()[1], doubles())


FROZEN = [
    f"{LAYER}.norm1",
    LAYER,
    "features.denseblock1",
    "features.denseblock2",
    "features.transition1.norm",
    "features.transition1",
    "features.norm_final",
    "features",
]
DROP = "features.transition1.drop"
FROZEN_OF_ANY = [(kind, part) for kind in KINDS for part in FROZEN]


@pytest.mark.parametrize(("kind", "frozen"), [*FROZEN_OF_ANY, ("dropping", f"{LAYER}.norm2"), ("dropping", DROP)])
def test_a_frozen_part_uses_running_statistics_of_its_own(kind, frozen, blocks_over_buffers):
    networks = naive_and_buffer(**({"drop_rate": 0.2} | KINDS[kind]))
    for network in networks:
        network.get_submodule(frozen).eval()
    assert_same_training(*networks, doubles())
    assert len(blocks_over_buffers) == 6
    for name, module in networks[1].named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == (0 if f"{name}.".startswith(f"{frozen}.") else 3)


def test_a_norm_that_is_frozen_after_the_forward_pass_has_the_gradients_of_the_batch():
    networks = naive_and_buffer()
    for network in networks:
        loss = network(doubles()).square().sum()
        network.features.eval()
        loss.backward()
    assert largest_difference(record(networks[1]), record(networks[0])) <= ROUNDING


def test_one_value_per_channel_is_refused_as_by_pytorch():
    for network in naive_and_buffer():
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            network(doubles(images=1, side=2))


def test_one_value_per_channel_is_enough_for_frozen_norms():
    networks = naive_and_buffer()
    for network in networks:
        network.features.denseblock2.eval()
        network.features.norm_final.eval()
    assert_same_training(*networks, doubles(images=1, side=2))
