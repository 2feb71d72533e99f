"""Over the feature buffer any network, and any part of it, trains as with plain autograd."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data import datasets
from models import DROP_PLACES, DenseNet
from models.buffer import rows as rows_module
from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import (
    FORMATS,
    IMAGENET,
    KINDS,
    LAYER,
    OF_ALL_KINDS,
    PLAIN,
    assert_same_training,
    doubles,
    naive_and_buffer,
)


@st.composite
def configs(draw) -> dict[str, object]:
    drop_rate = draw(st.sampled_from([0, 0.2, 0.5]))
    # A single channel has no memory format, in whose order values are dropped.
    least = 2 if drop_rate else 1
    return {
        "growth_rate": draw(st.integers(least, 5)),
        "block_config": tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))),
        "num_init_features": draw(st.integers(least, 9)),
        "bn_size": draw(st.one_of(st.none(), st.integers(1, 4))),
        "compression": draw(st.sampled_from([0.5, 0.7, 1])),
        "drop_rate": drop_rate,
        "drop_where": draw(st.sampled_from(DROP_PLACES)),
        "small_inputs": draw(st.sampled_from([True, True, False])),
    }


@st.composite
def batches_for(draw, config: dict[str, object]) -> Tensor:
    """Images of which the last block makes at least eight pixels: of fewer, norms make nearly constants."""
    least = 2 ** len(config["block_config"]) * (1 if config["small_inputs"] else 4)
    height, width = (least + draw(st.integers(0, least)) for _ in range(2))
    images = torch.randn(draw(st.integers(2, 5)), 3, height, width, generator=torch.Generator().manual_seed(0))
    return images.double().contiguous(memory_format=draw(st.sampled_from(FORMATS)))


@settings(deadline=None, derandomize=True, max_examples=120)
@given(st.data())
def test_training_of_any_network_is_the_same_to_rounding(data):
    config = data.draw(configs())
    images = data.draw(batches_for(config))
    memory_format = data.draw(st.sampled_from(FORMATS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "CPU_CHUNK_BYTES", data.draw(st.sampled_from([1, 2**12, 2**22])))
        pair = naive_and_buffer(data.draw(st.sampled_from(BUFFER_STRATEGIES)), **config)
        networks = (network.to(memory_format=memory_format) for network in pair)
        assert_same_training(*networks, images)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.data())
def test_training_any_part_is_the_same_to_rounding(data):
    networks = naive_and_buffer(**data.draw(st.sampled_from(list(KINDS.values()))))
    parameters = [list(network.parameters()) for network in networks]
    wanted = data.draw(st.lists(st.booleans(), min_size=len(parameters[0]) - 1, max_size=len(parameters[0]) - 1))
    for pair, is_wanted in zip(zip(*parameters, strict=True), [*wanted, True], strict=True):
        for parameter in pair:
            parameter.requires_grad_(is_wanted)
    assert_same_training(*networks, doubles(), input_gradient=data.draw(st.booleans()), steps=2)


@pytest.mark.parametrize("config", [*KINDS.values(), IMAGENET, IMAGENET | PLAIN], ids=[*KINDS, "imagenet", "both"])
def test_all_blocks_run_over_buffers_without_a_warning(config, blocks_over_buffers):
    network = naive_and_buffer(**config)[1]
    network(doubles(side=32))
    assert blocks_over_buffers == [network.features.denseblock1, network.features.denseblock2]


@pytest.mark.parametrize("part", ["", "features", "features.denseblock2", LAYER, f"{LAYER}.norm1", f"{LAYER}.conv2"])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_training_a_part_or_all_but_a_part_is_the_same(part, trains, input_gradient):
    networks = naive_and_buffer()
    for network in networks:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(part) == trains or name == "classifier.bias")
    assert_same_training(*networks, doubles(), input_gradient=input_gradient)


@pytest.mark.parametrize("images", [1, 2, 3])
@OF_ALL_KINDS
def test_small_batches_are_the_same(config, images):
    assert_same_training(*naive_and_buffer(**config), doubles(images=images))


def test_a_last_batch_that_is_shorter_is_the_same():
    naive, buffer = naive_and_buffer()
    for images in (doubles(images=6), doubles(images=1), doubles(images=6)):
        assert_same_training(naive, buffer, images, steps=2)


def test_fifty_steps_on_digits_have_the_same_losses():
    split = datasets.load("digits", folder=None, download=False).train.take(torch.arange(64))
    images = split.images[:, :, ::4, ::4].double() / 255 - 0.5

    def losses(network: DenseNet) -> list[float]:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        values = []
        for step in range(50):
            batch = torch.arange(16 * step, 16 * step + 16) % len(split)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[batch]), split.labels[batch])
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    expected, actual = map(losses, naive_and_buffer(growth_rate=2, block_config=(2, 1), num_classes=10))
    assert expected[-1] < 0.5 * expected[0]
    assert actual == pytest.approx(expected, rel=1e-9)
