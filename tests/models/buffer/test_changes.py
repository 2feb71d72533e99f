"""Modules that were changed are called, in place of the feature buffer, and a warning says why."""

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from models import DenseNet
from models.buffer.eligible import why_call_layers
from models.layers import DenseLayer, PlainLayer
from tests.support.network_pairs import DROPPING, LAYER, PLAIN, SMALL, assert_same_training, doubles, naive_and_buffer


class Positive(DenseLayer):
    """Do something that a layer's parameters do not say."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(features).abs()


class PlainAndPositive(PlainLayer):
    """Do something that a layer's parameters do not say."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(features).abs()


def replace_forward(network: DenseNet) -> None:
    layer = network.get_submodule(LAYER)
    layer.forward = lambda features: DenseLayer.forward(layer, features).abs()


def replace(name: str, make: Callable[[], nn.Module], network: DenseNet) -> None:
    torch.manual_seed(0)
    network.set_submodule(f"{LAYER}{name}", make())


def rearrange(name: str, children: list[str], network: DenseNet) -> None:
    parent = network.get_submodule(name)
    modules = dict(parent.named_children())
    for child in modules:
        delattr(parent, child)
    for child in children:
        parent.add_module(child, modules[child])


def drop_before(name: str, make: Callable[[], nn.Module], network: DenseNet) -> None:
    transition = network.features.transition1
    names = [child for child, _ in transition.named_children()]
    transition.drop = make()
    names.insert(names.index(name), "drop")
    rearrange("features.transition1", names, network)


def another_convolution(name: str, *sizes: int, **settings) -> tuple[Callable[[DenseNet], None], str]:
    """A change that puts a convolution of other settings in place of a layer's own, and the reason that is told."""
    change = partial(replace, f".{name}", lambda: nn.Conv2d(*sizes, **settings))
    return change, rf"denselayer2.{name} \(Conv2d\) has other settings"


CHANGES = {
    "a layer of another class": (
        partial(replace, "", lambda: Positive(12, 4, 4, 0, False)),
        r"denselayer2 \(Positive\) is of a class that it does not know",
    ),
    "a method of its own": (replace_forward, r"denselayer2 \(DenseLayer\) has a forward of its own"),
    "weight norm": (
        lambda network: parametrizations.weight_norm(network.get_submodule(LAYER).conv1),
        r"denselayer2.conv1 \(ParametrizedConv2d\) is of a class that it does not know",
    ),
    "pruning": (
        lambda network: prune.l1_unstructured(network.get_submodule(LAYER).conv2, "weight", amount=0.5),
        r"denselayer2.conv2 \(Conv2d\) has hooks",
    ),
    "group norm": (
        partial(replace, ".norm2", lambda: nn.GroupNorm(4, 16)),
        r"denselayer2.norm2 \(GroupNorm\) is of a class that it does not know",
    ),
    "norm without parameters": (
        partial(replace, ".norm1", lambda: nn.BatchNorm2d(12, affine=False)),
        r"denselayer2.norm1 \(BatchNorm2d\) has no weight and bias",
    ),
    "another activation": (
        partial(replace, ".relu2", nn.ELU),
        r"denselayer2.relu2 \(ELU\) is of a class that it does not know",
    ),
    "convolution with bias": another_convolution("conv1", 12, 16, 1),
    "convolution with dilation": another_convolution("conv2", 16, 4, 3, padding=2, dilation=2, bias=False),
    "convolution in groups": another_convolution("conv2", 16, 4, 3, padding=1, groups=2, bias=False),
    "convolution that wraps around": another_convolution(
        "conv2", 16, 4, 3, padding=1, padding_mode="circular", bias=False
    ),
    "wider bottleneck convolution": another_convolution("conv1", 12, 16, 3, padding=1, bias=False),
    "norm without bias": (
        lambda network: setattr(network.get_submodule(LAYER).norm2, "bias", None),
        r"denselayer2.norm2 \(BatchNorm2d\) has no weight and bias",
    ),
    "no activation": (
        partial(replace, ".relu1", lambda: nn.Sequential()),
        r"denselayer2.relu1 \(Sequential\) is of another class than this network's own",
    ),
    "pooling of the largest": (
        lambda network: setattr(network.features.transition1, "pool", nn.MaxPool2d(2)),
        r"pool \(MaxPool2d\) is of another class than this network's own",
    ),
    "pooling first": (
        partial(rearrange, "features.transition1", ["pool", "norm", "relu", "conv"]),
        "Transition has been rearranged",
    ),
    "transition without ReLU": (
        partial(rearrange, "features.transition1", ["norm", "conv", "pool"]),
        "Transition has been rearranged",
    ),
    "dropout in place": (
        partial(drop_before, "pool", lambda: nn.Dropout(0.2, inplace=True)),
        r"drop \(Dropout\) has other settings",
    ),
    "dropout of channels": (
        partial(drop_before, "pool", lambda: nn.Dropout2d(0.2)),
        r"drop \(Dropout2d\) is of a class that it does not know",
    ),
    "dropout before the convolution": (
        partial(drop_before, "conv", lambda: nn.Dropout(0.2)),
        "Transition has been rearranged",
    ),
    "a part more": (
        lambda network: network.get_submodule(LAYER).add_module("relu3", nn.ReLU()),
        "denselayer2 has other parts than this network's own",
    ),
    "another pooling": (
        lambda network: setattr(network.features.transition1, "pool", nn.AvgPool2d(3, 2, padding=1)),
        r"pool \(AvgPool2d\) has other settings",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_called_and_a_warning_says_why(change, blocks_over_buffers):
    assert_called_after(*CHANGES[change], SMALL, blocks_over_buffers)


def assert_called_after(
    modify: Callable[[DenseNet], None], reason: str, config: dict[str, object], blocks_over_buffers: list[nn.Module]
) -> None:
    networks = naive_and_buffer(**config)
    for network in networks:
        modify(network)
        network.double()
    networks[1].load_state_dict(networks[0].state_dict())
    with pytest.warns(UserWarning, match=f"runs module by module and keeps more memory: {reason}"):
        assert_same_training(*networks, doubles())
    # A block whose transition is called has a buffer of its own.
    first, second = networks[1].features.denseblock1, networks[1].features.denseblock2
    assert set(blocks_over_buffers) == ({second} if "denselayer" in reason else {first, second})


PLAIN_CHANGES = {
    "a layer of another class": (
        partial(replace, "", lambda: PlainAndPositive(12, 4, 0, False)),
        r"denselayer2 \(PlainAndPositive\) is of a class that it does not know",
    ),
    "a smaller filter": another_convolution("conv1", 12, 4, 1, bias=False),
    "a filter that wraps around": another_convolution(
        "conv1", 12, 4, 3, padding=1, padding_mode="circular", bias=False
    ),
    "a convolution that is not called": (
        partial(replace, ".conv2", lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        "denselayer2 has other parts than this network's own",
    ),
    "a norm that is not called": (
        partial(replace, ".norm2", lambda: nn.BatchNorm2d(4)),
        "denselayer2 has other parts than this network's own",
    ),
}


@pytest.mark.parametrize("change", PLAIN_CHANGES)
def test_a_changed_plain_layer_is_called_and_a_warning_says_why(change, blocks_over_buffers):
    assert_called_after(*PLAIN_CHANGES[change], PLAIN, blocks_over_buffers)


def test_dropout_that_is_added_where_it_belongs_needs_no_call(blocks_over_buffers):
    networks = naive_and_buffer()
    for network in networks:
        drop_before("pool", lambda: nn.Dropout(0.2), network)
    assert_same_training(*networks, doubles())
    assert len(blocks_over_buffers) == 6


def test_a_block_may_have_layers_of_both_kinds(blocks_over_buffers):
    networks = naive_and_buffer(**DROPPING)
    for network in networks:
        replace("", lambda: PlainLayer(12, 4, 0.2, False), network)
        network.double()
    assert_same_training(*networks, doubles())
    assert len(blocks_over_buffers) == 6


def test_layers_in_another_order_are_refused_as_by_the_modules():
    naive, buffer = naive_and_buffer()
    for network in (naive, buffer):
        rearrange("features.denseblock1", ["denselayer2", "denselayer1", "denselayer3"], network)
    with pytest.raises(RuntimeError) as expected:
        naive(doubles())
    with (
        pytest.warns(UserWarning, match="denselayer1 does not read all that comes before it"),
        pytest.raises(RuntimeError, match=re.escape(str(expected.value))),
    ):
        buffer(doubles())


def test_synchronised_norms_are_called(blocks_over_buffers):
    naive, buffer = map(nn.SyncBatchNorm.convert_sync_batchnorm, naive_and_buffer())
    reason = why_call_layers(buffer.features.denseblock1, torch.empty(0, dtype=torch.float64))
    assert reason == "denselayer1.norm1 (SyncBatchNorm) is of a class that it does not know"
    with pytest.warns(UserWarning, match="SyncBatchNorm"):
        assert_same_training(naive, buffer, doubles())
    assert blocks_over_buffers == []


def with_features(network: DenseNet, *modules: tuple[str, nn.Module]) -> None:
    network.features = nn.Sequential(OrderedDict(modules)).double()


REARRANGED = {
    "one more": lambda modules: [*modules, ("identity", nn.Identity())],
    # With a ReLU, because the transition's own norm undoes the bias of one that it follows.
    "norm between": lambda modules: [*modules[:2], ("norm", nn.BatchNorm2d(20)), ("relu", nn.ReLU()), *modules[2:]],
}


@pytest.mark.parametrize("change", REARRANGED)
def test_rearranged_features_are_called(change, blocks_over_buffers):
    networks = naive_and_buffer()
    for network in networks:
        with_features(network, *REARRANGED[change](list(network.features.named_children())))
    with pytest.warns(UserWarning, match="its features have been rearranged"):
        assert_same_training(*networks, doubles())
    assert set(blocks_over_buffers) == {networks[1].features.denseblock1, networks[1].features.denseblock2}


def test_names_of_features_do_not_matter(blocks_over_buffers):
    networks = naive_and_buffer()
    for network in networks:
        modules = network.features.children()
        with_features(network, *((f"part{i}", module) for i, module in enumerate(modules)))
    assert_same_training(*networks, doubles())
    assert len(blocks_over_buffers) == 6


# Each ends with a ReLU, because a block's own norms undo the bias of one that they follow.
STEMS = {
    "norm in the middle": lambda: [("relu0", nn.ReLU()), ("norm0", nn.BatchNorm2d(8)), ("relu1", nn.ReLU())],
    "two norms": lambda: [
        ("norm0", nn.BatchNorm2d(8)),
        ("relu0", nn.ReLU()),
        ("norm1", nn.BatchNorm2d(8)),
        ("relu1", nn.ReLU()),
    ],
}


@pytest.mark.parametrize("stem", STEMS)
def test_norms_of_another_stem_count_each_step_once(stem):
    networks = naive_and_buffer()
    for network in networks:
        convolution, *others = network.features.named_children()
        with_features(network, convolution, *STEMS[stem](), *others)
    assert_same_training(*networks, doubles())
    assert networks[1].features.norm0.num_batches_tracked == 3


def test_a_network_without_a_stem_is_the_same():
    networks = naive_and_buffer()
    for network in networks:
        with_features(network, *list(network.features.named_children())[1:])
    assert_same_training(*networks, torch.randn(4, 8, 8, 8, dtype=torch.float64))
