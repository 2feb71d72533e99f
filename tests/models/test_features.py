"""The features of a network as a backbone: whole, in part, and watched by hooks."""

import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from models import DenseNet
from models.densenet import STRATEGIES
from models.features import DenseBlock, Features
from tests.support.network_pairs import IMAGENET, KINDS, ROUNDING, SMALL, doubles
from tests.support.tensor_measurements import (
    LiveStorages,
    bytes_saved_for_backward,
    frozen,
    largest_difference,
    naive_and,
    random_images,
    record,
)

EFFICIENT = STRATEGIES[1:]
DEEP = SMALL | {"block_config": (9, 9)}

# Ways to get maps out of a network without its classifier.
BACKBONES = {
    "features": lambda network: network.features,
    "all but the classifier": lambda network: nn.Sequential(*list(network.children())[:-1]),
    "a slice": lambda network: network.features[:4],
    "a slice that begins with a block": lambda network: nn.Sequential(network.features[0], network.features[1:3]),
    "modules one by one": lambda network: nn.Sequential(*network.features.children()),
    "torchvision's getter": lambda network: Last(IntermediateLayerGetter(network.features, {"denseblock2": "maps"})),
}


class Last(nn.Module):
    """Give out the last of the maps that a getter returns."""

    def __init__(self, getter: nn.Module):
        super().__init__()
        self.getter = getter

    def forward(self, images: Tensor) -> Tensor:
        return list(self.getter(images).values())[-1]


def step(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    maps = network(images)
    weights = torch.randn(maps.shape, dtype=maps.dtype, generator=torch.Generator().manual_seed(3))
    (maps * weights).sum().backward()
    return record(network, maps=maps)


@pytest.mark.filterwarnings("ignore:a part of the network runs module by module")
@pytest.mark.parametrize("strategy", EFFICIENT)
@pytest.mark.parametrize("way", BACKBONES)
@pytest.mark.parametrize("kind", [*KINDS, "ImageNet"])
def test_a_backbone_has_the_maps_and_gradients_of_the_plain_one(way, kind, strategy):
    config = (KINDS | {"ImageNet": IMAGENET})[kind]
    images = doubles(side=32) if kind == "ImageNet" else doubles()
    expected, actual = (step(BACKBONES[way](network.double()), images) for network in naive_and(strategy, **config))
    assert largest_difference(actual, expected) <= ROUNDING


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_backbone_in_eval_mode_has_the_same_bits_with_every_strategy(strategy):
    naive, network = naive_and(strategy, **SMALL)
    assert torch.equal(network.eval().features(random_images()), naive.eval().features(random_images()))


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("strategy", ["buffer", "buffer_fast"])
def test_features_keep_no_more_than_the_network(strategy, config):
    network, images = naive_and(strategy, **config)[1], random_images()
    given = [images, *network.parameters(), *network.buffers()]
    of_network = bytes_saved_for_backward(lambda: network(images), without=given)
    of_classifier = 4 * images.shape[0] * network.classifier.in_features  # the averages, for the classifier's weight
    assert bytes_saved_for_backward(lambda: network.features(images), without=given) <= of_network - of_classifier


@pytest.mark.filterwarnings("ignore:a part of the network runs module by module")
@pytest.mark.parametrize("way", BACKBONES)
def test_what_a_backbone_keeps_does_not_grow_with_the_square_of_its_layers(way):
    def kept(num_layers: int) -> int:
        network = DenseNet(**(SMALL | {"block_config": (num_layers,) * 2}), efficient="buffer_fast")
        images = random_images()
        with LiveStorages() as memory:
            maps = BACKBONES[way](network)(images)
        return memory.live_bytes(without=[images, maps, *network.parameters(), *network.buffers()])

    one, two, three = (kept(num_layers) for num_layers in (6, 12, 18))
    assert three - two == two - one


def test_a_block_alone_keeps_its_buffer_and_statistics():
    network, images = naive_and("buffer", **DEEP)[1], random_images()
    block = network.features.denseblock1
    maps = network.features.conv0(images).detach().requires_grad_()
    rows, channels = images.shape[0] * images.shape[2] * images.shape[3], 8 + 9 * 4
    # One number for each value of the block in 32 bits, three for each channel, and mean and deviation of bottlenecks.
    expected = 4 * (rows * channels + 3 * channels + 9 * 2 * 16)
    with LiveStorages() as memory:
        result = block(maps)
    assert memory.live_bytes(without=[maps, result, *network.buffers()]) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_slice_has_the_strategy_of_the_features(strategy):
    features = DenseNet(**SMALL, efficient=strategy).features
    assert isinstance(features[1:3], Features)
    assert features[1:3].strategy == features[1].strategy == strategy
    assert isinstance(features[1], DenseBlock)


WATCHED = ["features", "features.norm_final", "features.denseblock1.denselayer1.norm1", "features.transition1.norm"]


@pytest.mark.filterwarnings("ignore:a part of the network runs module by module")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_hook_got_stays_as_it_is(strategy, name, training):
    network = naive_and(strategy, **SMALL)[1].train(training)
    seen = []
    network.get_submodule(name).register_forward_hook(lambda module, inputs, maps: seen.append((maps, maps.clone())))
    network(random_images())
    maps, as_they_were = seen[0]
    assert as_they_were.min() < 0  # which a ReLU in place would change
    assert torch.equal(maps, as_they_were)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_replaced_method_got_stays_as_it_is(strategy, monkeypatch):
    network, seen = naive_and(strategy, **SMALL)[1].eval(), []
    norm_forward = nn.BatchNorm2d.forward

    def forward(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
        result = norm_forward(norm, maps)
        seen.append((result, result.clone()))
        return result

    monkeypatch.setattr(nn.BatchNorm2d, "forward", forward)
    network(random_images())
    assert len(seen) == 2 * 5 + 2
    assert all(torch.equal(result, as_it_was) for result, as_it_was in seen)


@pytest.mark.filterwarnings("ignore:a part of the network runs module by module")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_backward_hook_gets_the_gradient_of_the_output(strategy, name, training):
    naive, network = (network.double().train(training) for network in naive_and(strategy, **SMALL))
    gradients = []
    for each in (naive, network):
        shapes = []
        module = each.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, maps, shapes=shapes: shapes.append(maps.shape))
        module.register_full_backward_hook(lambda module, given, taken: gradients.append(taken[0]))
        each(doubles().requires_grad_()).square().sum().backward()
        assert gradients[-1].shape == shapes[0]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_without_a_batch_are_refused_with_the_words_of_the_modules(strategy):
    with pytest.raises(ValueError, match="expected 4D input"):
        DenseNet(**SMALL, efficient=strategy)(torch.randn(3, 8, 8))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_value_of_each_channel_is_enough_for_frozen_norms(strategy):
    config = SMALL | {"block_config": (2,)}
    expected, actual = (frozen(network)(torch.ones(1, 3, 1, 1)) for network in naive_and(strategy, **config))
    assert torch.equal(actual, expected)


def test_features_can_be_built_of_modules_by_name():
    features = Features(OrderedDict(conv0=nn.Conv2d(3, 8, 3), denseblock1=DenseBlock(1, 8, 4, 4, 0)))
    assert features(random_images()).shape == (4, 12, 6, 6)


def test_whole_networks_that_earlier_versions_pickled_are_loaded():
    """They look for dense blocks in `models.layers`."""
    network = DenseNet(**SMALL, efficient="buffer").eval()
    ours, theirs = (f"c{DenseBlock.__module__}\nDenseBlock\n".encode(), b"cmodels.layers\nDenseBlock\n")
    content = pickle.dumps(network, protocol=0)
    assert content.count(ours) == 1  # later blocks refer to it
    loaded = pickle.loads(content.replace(ours, theirs))
    images = random_images()
    assert torch.equal(loaded(images), network(images))
