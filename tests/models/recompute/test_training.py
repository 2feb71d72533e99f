"""Training that recomputes is the same as plain training, bit for bit."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from models import DenseNet
from models import layers as layers_module
from models.layers import DenseLayer, PlainLayer
from tests.support.network_pairs import (
    BF16,
    DROPOUTS,
    DROPPING,
    FORMATS,
    IMAGENET,
    PLAIN,
    SMALL,
    accumulate,
    assert_same_bits,
    naive_and_checkpoint,
)
from tests.support.tensor_measurements import bytes_saved_for_backward, random_images, record, train, unequal

CONFIGS = {"small": SMALL, "plain": PLAIN, "imagenet": IMAGENET}
SIDE = {"small": 8, "plain": 8, "imagenet": 32}
PRECISIONS = {"float32": nullcontext, "bf16": BF16}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("form", CONFIGS)
def test_training_is_the_same_bit_for_bit(form, dropout, memory_format, precision):
    networks = naive_and_checkpoint(**(CONFIGS[form] | DROPOUTS[dropout]))
    naive, efficient = (network.to(memory_format=memory_format) for network in networks)
    images = random_images(SIDE[form]).contiguous(memory_format=memory_format)
    assert_same_bits(naive, efficient, images, precision=PRECISIONS[precision])


def test_training_is_the_same_bit_for_bit_on_two_threads():
    torch.set_num_threads(2)
    try:
        assert_same_bits(*naive_and_checkpoint(), random_images(side=32, images=16))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("input_gradient", [False, True])
@pytest.mark.parametrize(
    "trainable",
    [
        "features",
        "classifier",
        "features.denseblock2",
        "features.denseblock1.denselayer3",
        "features.denseblock1.denselayer2.norm1",
        "features.denseblock1.denselayer2.conv1",
        "features.denseblock1.denselayer2.conv2",
    ],
)
def test_training_a_part_is_the_same(trainable, input_gradient):
    networks = naive_and_checkpoint()
    for network in networks:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(trainable))
    assert_same_bits(*networks, random_images(), input_gradient=input_gradient)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_accumulated_gradients_are_the_same(order):
    parts = random_images(images=6).split(3)
    naive, efficient = (accumulate(network, parts, order) for network in naive_and_checkpoint())
    assert unequal(naive, efficient) == []
    assert efficient["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("config", [SMALL | DROPPING, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_a_retained_graph_gives_the_same_gradients_again(config):
    network = naive_and_checkpoint(**config)[1]
    loss = network(random_images()).square().sum()
    loss.backward(retain_graph=True)
    once = record(network)
    loss.backward()
    twice = record(network)
    gradients = [name for name in once if name.startswith("gradient of ")]
    assert unequal({name: 2 * once[name] for name in gradients}, {name: twice[name] for name in gradients}) == []
    assert unequal({name: once[name] for name in network.state_dict()}, network.state_dict()) == []


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
def test_second_derivatives_are_the_same(config):
    def penalise(network: DenseNet) -> dict[str, Tensor]:
        images = random_images().double().requires_grad_()
        loss = network(images).square().sum()
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        gradient.square().sum().backward()
        return record(network, images=images.grad)

    naive, efficient = (penalise(network.double()) for network in naive_and_checkpoint(**config))
    for name, tensor in naive.items():
        torch.testing.assert_close(efficient[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


LAYERS_THAT_DROP = {
    "bottleneck": lambda: DenseLayer(5, 2, bn_size=2, drop_rate=0.2, checkpoint=True, bottleneck_drop_rate=0.2),
    "plain": lambda: PlainLayer(5, 2, drop_rate=0.2, checkpoint=True),
}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("kind", LAYERS_THAT_DROP)
def test_gradients_agree_with_finite_differences(kind, drops):
    torch.manual_seed(0)
    layer = LAYERS_THAT_DROP[kind]().double()
    if not drops:
        layer.drop_rate = layer.bottleneck_drop_rate = 0
    features = [torch.randn(3, channels, 3, 3, dtype=torch.float64, requires_grad=True) for channels in (3, 2)]

    def make(*tensors: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(tensors[:2])

    assert torch.autograd.gradcheck(make, (*features, *layer.parameters()))


def refuse(*args: object, **kwargs: object) -> Tensor:
    raise AssertionError("recomputation was asked for")


def test_only_training_with_gradients_recomputes(monkeypatch):
    monkeypatch.setattr(layers_module, "recompute_in_backward", refuse)
    network, images = naive_and_checkpoint()[1], random_images()
    with pytest.raises(AssertionError, match="recomputation was asked for"):
        network(images)
    with torch.no_grad():
        network(images)
    with torch.inference_mode():
        network(images)
    network.eval()(images).sum().backward()


def test_a_compiled_network_trains_the_same_and_keeps_less():
    naive, efficient = naive_and_checkpoint()
    efficient.compile(backend="aot_eager")
    images = random_images()
    kept = [
        bytes_saved_for_backward(partial(network, images), without=[*network.parameters(), *network.buffers()])
        for network in (naive, efficient)
    ]
    assert kept[1] < 0.9 * kept[0]
    expected, actual = (train(network, images) for network in (naive, efficient))
    for left, right in zip(expected, actual, strict=True):
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5, msg=name)


def test_naive_mode_never_recomputes(monkeypatch):
    monkeypatch.setattr(layers_module, "recompute_in_backward", refuse)
    naive_and_checkpoint()[0](random_images()).sum().backward()
