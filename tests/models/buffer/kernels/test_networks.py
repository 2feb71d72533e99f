"""Networks that train by kernels have the results, gradients and running statistics of float64, but for rounding."""

import copy
from functools import partial
from statistics import geometric_mean
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import DROP_PLACES, DenseNet
from models.buffer.kernels import forward, workspace
from models.densenet import BUFFER_STRATEGIES
from tests.support.kernel_networks import CAPABILITIES, FUSED, LIBRARY, by_kernels, few_images, naive_and_buffer, step
from tests.support.network_pairs import DROPPING, FORMATS, relative_errors
from tests.support.tensor_measurements import largest_difference, norms, unequal
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS
INTERPRETED = pytest.mark.skipif(DEVICE == "cuda", reason="which values a GPU drops depends on their dtype")


class NormSettings(NamedTuple):
    is_frozen: bool
    tracks: bool
    eps: float
    momentum: float | None


NORM_SETTINGS = st.builds(
    NormSettings,
    is_frozen=st.sampled_from([False, False, False, True]),
    tracks=st.sampled_from([True, True, True, False]),
    eps=st.sampled_from([1e-5, 1e-5, 1e-3]),
    momentum=st.sampled_from([0.1, None]),
)

READS = {
    "logits": lambda network, images: network(images),
    "feature maps": lambda network, images: network.features(images),
    "a block alone": lambda network, images: network.features.denseblock1(network.features.conv0(images)),
}


@st.composite
def configs(draw) -> dict[str, object]:
    drop_rate = draw(st.sampled_from([0, 0.3]))
    least = 2 if drop_rate else 1  # a single channel has no memory format, in whose order values are dropped
    return {
        "growth_rate": draw(st.sampled_from([least, 3, 5, 8, 16])),
        "block_config": draw(st.sampled_from([(1,), (2,), (1, 1)])),
        "num_init_features": draw(st.integers(least, 18)),
        "bn_size": draw(st.sampled_from([4, 4, 3, 1, None])),
        "compression": draw(st.sampled_from([0.5, 1])),
        "drop_rate": drop_rate,
        "drop_where": draw(st.sampled_from(DROP_PLACES)),
        "small_inputs": draw(st.sampled_from([True, True, False])),
    }


def images_for(config: dict[str, object], num_images: int, height: int, width: int) -> Tensor:
    """Random images, larger ones if the stem of the network makes them smaller."""
    scale = 1 if config["small_inputs"] else 4
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, scale * height, scale * width, generator=generator).to(DEVICE)


def change_norms(network: DenseNet, of_norms: list[NormSettings]) -> None:
    """Give norms these settings, in turn, as if they had been trained before."""
    for i, norm in enumerate(norms(network)):
        is_frozen, norm.track_running_stats, norm.eps, norm.momentum = of_norms[i % len(of_norms)]
        norm.train(not is_frozen)
        norm.num_batches_tracked += 2


def step_of_float64(network: DenseNet, images: Tensor, **kwargs) -> tuple[dict[str, Tensor], float]:
    """Return a record of a step, and the least distance of a ReLU's input from 0, where its gradient jumps."""
    exact, least = copy.deepcopy(network).double(), []
    for norm in norms(exact):
        norm.register_forward_hook(lambda module, inputs, result: least.append(result.detach().abs().min().item()))
    return step(exact, images.double(), **kwargs), min(least)


@INTERPRETED
@CAPABILITIES
@settings(deadline=None, derandomize=True, max_examples=8, phases=[Phase.generate])  # to shrink one takes minutes
@given(data=st.data())
def test_training_any_network_is_as_exact_as_with_plain_modules(capability, data):
    config, read = data.draw(configs()), READS[data.draw(st.sampled_from(list(READS)))]
    sizes = data.draw(st.tuples(st.integers(2, 3), st.integers(4, 6), st.integers(4, 6)))
    format_of_images, memory_format = data.draw(st.tuples(st.sampled_from(FORMATS), st.sampled_from(FORMATS)))
    images = images_for(config, *sizes).contiguous(memory_format=format_of_images)
    of_norms = data.draw(st.lists(NORM_SETTINGS, min_size=3, max_size=3))
    networks = naive_and_buffer(data.draw(st.sampled_from(BUFFER_STRATEGIES)), **config)
    for network in networks:
        change_norms(network, of_norms)
    naive, buffer = (network.to(memory_format=memory_format) for network in networks)
    least_chunk = patch.object(workspace, "LEAST_CHUNK_BYTES", data.draw(st.sampled_from([1, 2**23])))
    with least_chunk, by_kernels(capability, data.draw(st.sampled_from(["ieee", "tf32"]))) as launches:
        truth, least = step_of_float64(naive, images, read=read)
        error = largest_difference(step(naive, images, read=read), truth)
        assume(least > 1e-5 and error < 1e-5)  # without these networks, in which rounding makes great differences
        actual = step(buffer, images, read=read)
    assert launches
    assert largest_difference(actual, truth) <= 4 * error + 3e-6


def far_from_zero(network: DenseNet) -> DenseNet:
    """Let the input of a ReLU be on the same side of 0 at all pixels, so that rounding flips no sign."""
    with torch.no_grad():
        for norm in norms(network):
            norm.weight.mul_(0.2)
            norm.bias.copy_(1.5 - 3 * (torch.arange(norm.num_features) % 2))
    return network


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("capability", "num_batches"), [(LIBRARY, 3), (FUSED, 1)], ids=["library", "fused"])
def test_errors_under_autocast_are_those_of_plain_modules(capability, num_batches, dtype):
    """A batch of this size differs by a factor of up to 1.8 either way; eight of them by 0.94 to 1.04 on average."""
    naive, buffer = map(far_from_zero, naive_and_buffer(growth_rate=5, num_init_features=9, **DROPPING))
    features = partial(step, read=READS["feature maps"])
    precision = partial(torch.autocast, DEVICE, dtype=dtype)
    ratios = []
    for seed in range(num_batches):
        images = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        with by_kernels(capability):
            truth = features(copy.deepcopy(naive).double(), images.double())
            expected = features(copy.deepcopy(naive), images, precision=precision)
            actual = features(copy.deepcopy(buffer), images, precision=precision)
        for kind in ("result", "gradient of images", "gradient of features", "running"):
            ratios.append(relative_errors(actual, truth, kind) / relative_errors(expected, truth, kind))
    assert geometric_mean(ratios) < 1.2
    assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@CAPABILITIES
def test_convolutions_may_have_weights_of_16_bits(capability, dtype):
    networks = [far_from_zero(network) for network in naive_and_buffer(block_config=(2,), **DROPPING)]
    exact = copy.deepcopy(networks[0]).double()
    for network in networks:
        network.to(dtype)
        for norm in norms(network):
            norm.float()
    with by_kernels(capability) as launches:
        truth = step(exact, few_images().double())
        expected, actual = (step(network, few_images().to(dtype)) for network in networks)
    assert launches
    for kind in ("result", "gradient of images", "gradient of features", "running"):
        assert relative_errors(actual, truth, kind) < 3 * relative_errors(expected, truth, kind)
    assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("capability", "config"),
    [(LIBRARY, DROPPING), (LIBRARY, {"bn_size": None}), (FUSED, DROPPING)],
    ids=["library", "library, plain", "fused"],
)
def test_two_steps_give_the_same_bits(capability, config, dtype):
    precision = partial(torch.autocast, DEVICE, dtype=dtype, enabled=dtype != torch.float32)
    network, images = naive_and_buffer(block_config=(2,), **config)[1], few_images()
    with by_kernels(capability):
        first, second = (step(copy.deepcopy(network), images, precision=precision) for _ in range(2))
    assert unequal(first, second) == []


def test_no_kernel_runs_that_is_not_recorded(monkeypatch):
    launched, kind = [], type(forward.activate_rows)
    run = kind.run

    def note(self, *arguments, **settings):
        launched.append(self.__name__)
        return run(self, *arguments, **settings)

    monkeypatch.setattr(kind, "run", note)
    for capability in (LIBRARY, FUSED):
        launched.clear()
        with by_kernels(capability) as launches:
            step(naive_and_buffer()[1], few_images())
        assert [launch.name for launch in launches] == launched
