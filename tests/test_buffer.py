import copy
import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import sqrt
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from data import datasets
from models import DROP_PLACES, DenseNet
from models import buffer as buffer_module
from models import rows as rows_module
from models.densenet import BUFFER_STRATEGIES, KNOWN_CLASSES, DenseLayer, PlainLayer
from tests.tensors import (
    LiveStorages,
    assert_undisturbed_by_threads,
    bytes_saved_for_backward,
    largest_difference,
    naive_and,
    norms,
    random_images,
    record,
    train,
    train_on_replicas_in_threads,
    unequal,
)

SMALL = {"growth_rate": 4, "block_config": (3, 2), "num_init_features": 8, "num_classes": 5}
IMAGENET = SMALL | {"small_inputs": False}
PLAIN = SMALL | {"bn_size": None, "compression": 1}
DROPPING = {"drop_rate": 0.2, "drop_where": "convolutions"}
KINDS = {"bottlenecks": SMALL, "plain": PLAIN, "dropping": SMALL | DROPPING, "plain, dropping": PLAIN | DROPPING}
OF_ALL_KINDS = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
ROUNDING = 1e-10  # Largest relative difference between two ways to compute the same thing in 64 bits.
FORMATS = [torch.contiguous_format, torch.channels_last]
BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
LAYER = "features.denseblock1.denselayer2"

generated = partial(settings, deadline=None, derandomize=True)


def naive_and_buffer(strategy: str = "buffer", **config) -> tuple[DenseNet, DenseNet]:
    naive, buffer = naive_and(strategy, **(SMALL | config))
    return naive.double(), buffer.double()


def doubles(**kwargs) -> Tensor:
    return random_images(**kwargs).double()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in record(network).items() if name.startswith("gradient of ")}


def assert_same_training(
    naive: nn.Module, buffer: nn.Module, images: Tensor, *, tolerance: float = ROUNDING, **kwargs
) -> None:
    expected, actual = (train(network, images, **kwargs) for network in (naive, buffer))
    for step, (left, right) in enumerate(zip(expected, actual, strict=True)):
        assert largest_difference(right, left) <= tolerance, f"step {step}"
    assert unequal(expected[0], expected[-1]), "the steps changed nothing, so this comparison shows nothing"


@pytest.fixture
def blocks_over_buffers(monkeypatch) -> list[nn.Module]:
    """List the blocks that have run over a feature buffer."""
    blocks, read_block = [], buffer_module.read_block

    def note(maps: Tensor, block: nn.Module, reader: nn.Module, **settings) -> Tensor:
        blocks.append(block)
        return read_block(maps, block, reader, **settings)

    monkeypatch.setattr(buffer_module, "read_block", note)
    return blocks


# Agreement with plain autograd


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


@generated(max_examples=120)
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


def set_norm(norm: nn.BatchNorm2d, mode: str, eps: float, momentum: float | None) -> None:
    norm.eps, norm.momentum = eps, momentum
    norm.train(not mode.startswith("frozen"))
    norm.track_running_stats = not mode.endswith("untracked")
    if mode.startswith("without"):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


@generated(max_examples=50)
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


@generated(max_examples=50)
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


def test_nothing_is_kept_where_no_gradient_is_wanted():
    network = naive_and_buffer()[1]
    network.features.requires_grad_(False)
    with LiveStorages() as storages:
        logits = network(doubles())
    averages = 8 * 4 * network.classifier.in_features
    assert storages.live_bytes(without=[logits, *network.parameters(), *network.buffers()]) == averages


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
    network = naive_and_buffer()[1]
    before = dict(network.named_buffers())
    addresses = {name: buffer.data_ptr() for name, buffer in before.items()}
    train(network, doubles())
    after = dict(network.named_buffers())
    assert all(after[name] is before[name] for name in before)
    assert {name: buffer.data_ptr() for name, buffer in after.items()} == addresses


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


@pytest.mark.parametrize("images", [1, 2, 3])
@OF_ALL_KINDS
def test_small_batches_are_the_same(config, images):
    assert_same_training(*naive_and_buffer(**config), doubles(images=images))


def test_a_last_batch_that_is_shorter_is_the_same():
    naive, buffer = naive_and_buffer()
    for images in (doubles(images=6), doubles(images=1), doubles(images=6)):
        assert_same_training(naive, buffer, images, steps=2)


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


# What is kept for the backward pass


# Of the blocks of SMALL: images times pixels, channels at the end, layers.
BLOCKS = [(4 * 8 * 8, 8 + 3 * 4, 3), (4 * 4 * 4, 10 + 2 * 4, 2)]
BOTTLENECK = 16
# "buffer" keeps the bottlenecks of the second block, where the peak is far from that of the first one.
BOTTLENECKS = {"buffer": [0, 2], "buffer_fast": [3, 2]}


def kept_bytes_in_closed_form(strategy: str) -> int:
    # Buffers, three numbers for each of their channels and two for each of a bottleneck, and bottlenecks.
    of_buffers = sum(8 * rows * channels + 3 * 8 * channels for rows, channels, _ in BLOCKS)
    of_statistics = sum(2 * 8 * BOTTLENECK * layers for *_, layers in BLOCKS)
    counts = zip(BLOCKS, BOTTLENECKS[strategy], strict=True)
    return of_buffers + of_statistics + sum(8 * rows * BOTTLENECK * count for (rows, *_), count in counts)


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@pytest.mark.parametrize("drop_rate", [0, 0.2])
def test_a_network_keeps_its_feature_buffers_alone(drop_rate, strategy):
    network = naive_and_buffer(strategy, drop_rate=drop_rate)[1]
    images = doubles()
    others = [images, *network.parameters(), *network.buffers()]
    expected = kept_bytes_in_closed_form(strategy)
    expected += sum(rows * 4 * layers for rows, _, layers in BLOCKS) if drop_rate else 0
    averages = 8 * 4 * 18
    assert bytes_saved_for_backward(lambda: network(images), without=others) == expected + averages
    with LiveStorages() as storages:
        logits = network(images)
    assert storages.live_bytes(without=[logits, *others]) == expected + averages


def test_the_imagenet_stem_keeps_the_maps_of_its_convolution_alone():
    network = naive_and_buffer(**IMAGENET)[1]
    images = doubles(side=32)
    others = [images, *network.parameters(), *network.buffers()]
    maps, averages = 8 * 4 * 16 * 16 * 8, 8 * 4 * 18
    with LiveStorages() as storages:
        logits = network(images)
    assert storages.live_bytes(without=[logits, *others]) == kept_bytes_in_closed_form("buffer") + maps + averages


@OF_ALL_KINDS
def test_saved_tensors_can_be_moved_away_and_back(config):
    naive, network = naive_and_buffer(**config)
    assert_same_training(naive, network, doubles(), precision=torch.autograd.graph.save_on_cpu)


# Passes over one graph, and over several


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_accumulated_gradients_are_the_same(order, strategy):
    def accumulate(network: DenseNet) -> dict[str, Tensor]:
        losses = [network(part).square().sum() for part in doubles(images=6).split(3)]
        for index in order:
            losses[index].backward()
        return record(network)

    naive, buffer = map(accumulate, naive_and_buffer(strategy))
    assert largest_difference(buffer, naive) <= ROUNDING
    assert buffer["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@OF_ALL_KINDS
def test_a_retained_graph_gives_the_same_gradients_again(config, strategy):
    network = naive_and_buffer(strategy, **({"drop_rate": 0.2} | config))[1]
    loss = network(doubles()).square().sum()
    loss.backward(retain_graph=True)
    once, state = gradients(network), copy.deepcopy(network.state_dict())
    loss.backward()
    assert unequal({name: 2 * gradient for name, gradient in once.items()}, gradients(network)) == []
    assert unequal(state, network.state_dict()) == []


def test_a_second_backward_pass_over_a_freed_graph_is_refused():
    loss = naive_and_buffer()[1](doubles()).square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_second_derivatives_are_refused():
    network, images = naive_and_buffer()[1], doubles().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_the_gradient_that_autograd_hands_over_is_left_alone():
    network = naive_and_buffer()[1]
    grad = torch.randn(4, 5, dtype=torch.float64)
    before = grad.clone()
    of_averages = []

    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].register_hook(of_averages.append)

    network.classifier.register_forward_pre_hook(watch)
    network(doubles()).backward(grad)
    assert torch.equal(grad, before)
    assert torch.equal(of_averages[0], grad @ network.classifier.weight)


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.norm1.weight",
        f"{LAYER}.norm1.bias",
        f"{LAYER}.conv1.weight",
        f"{LAYER}.norm2.weight",
        f"{LAYER}.norm2.bias",
        f"{LAYER}.conv2.weight",
        "features.transition1.norm.bias",
        "features.transition1.conv.weight",
        "features.norm_final.weight",
    ],
)
def test_a_parameter_that_changes_before_the_backward_pass_is_noticed(name):
    network = naive_and_buffer()[1]
    loss = network(doubles()).square().sum()
    with torch.no_grad():
        network.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("norm", [f"{LAYER}.norm1", f"{LAYER}.norm2", "features.transition1.norm"])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_frozen_statistic_that_changes_before_the_backward_pass_is_noticed(norm, statistic):
    network = naive_and_buffer()[1]
    network.get_submodule(norm).eval()
    loss = network(doubles()).square().sum()
    network.get_buffer(f"{norm}.{statistic}").add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Dropout


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("drop_rate", [0.2, 0.9])
@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@OF_ALL_KINDS
def test_the_same_values_are_dropped(config, strategy, memory_format, drop_rate):
    networks = naive_and_buffer(strategy, **(config | {"drop_rate": drop_rate}))
    naive, buffer = (network.to(memory_format=memory_format) for network in networks)
    # What is trained includes the state of the random numbers after each step.
    assert_same_training(naive, buffer, doubles().contiguous(memory_format=memory_format))


@pytest.mark.parametrize("place", DROP_PLACES)
@pytest.mark.parametrize("bn_size", [1, None])
def test_the_same_values_of_a_single_channel_are_dropped(bn_size, place):
    widths = {"growth_rate": 1, "num_init_features": 1, "bn_size": bn_size}
    assert_same_training(*naive_and_buffer(**widths, drop_rate=0.2, drop_where=place), doubles())


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
def test_rates_that_change_later_act(strategy):
    networks = naive_and_buffer(strategy, **DROPPING)
    for network in networks:
        layers = [network.get_submodule(f"features.denseblock1.denselayer{i}") for i in (1, 2, 3)]
        layers[0].bottleneck_drop_rate = layers[1].drop_rate = network.features.transition1.drop.p = 0
        layers[2].bottleneck_drop_rate = 0.5
    assert_same_training(*networks, doubles())


def test_another_seed_drops_other_values():
    network = naive_and_buffer(drop_rate=0.2)[1]
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(network(doubles()))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


# Where modules are called


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_modules_are_called(context, blocks_over_buffers):
    naive, buffer = naive_and_buffer()
    with context():
        assert torch.equal(naive(doubles()), buffer(doubles()))
    assert unequal(naive.state_dict(), buffer.state_dict()) == []
    assert blocks_over_buffers == []


@OF_ALL_KINDS
def test_in_eval_mode_modules_are_called(config, blocks_over_buffers):
    networks = naive_and_buffer(**({"drop_rate": 0.2} | config))
    expected, actual = (train(network.eval(), doubles()) for network in networks)
    for left, right in zip(expected, actual, strict=True):
        assert unequal(left, right) == []
    assert blocks_over_buffers == []


class Hook:
    """Count calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args: object) -> None:
        self.calls += 1


HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "forward pre": nn.Module.register_forward_pre_hook,
    "full backward": nn.Module.register_full_backward_hook,
    "full backward pre": nn.Module.register_full_backward_pre_hook,
}


HOOKED = {
    f"{LAYER}.conv2": "denselayer2.conv2 (Conv2d)",
    f"{LAYER}.norm2": "denselayer2.norm2 (BatchNorm2d)",
    LAYER: "denselayer2 (DenseLayer)",
    "features.denseblock1": "DenseBlock",
    "features.transition1": "Transition",
    "features.transition1.pool": "pool (AvgPool2d)",
}


def fits(kind: str, name: str) -> bool:
    """Layers take lists, and backward hooks need tensors; ReLUs may not overwrite what such a hook has seen."""
    return kind.startswith("forward") or name not in (LAYER, f"{LAYER}.norm2")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in HOOKS for name in HOOKED if fits(kind, name)])
def test_hooks_in_a_stage_are_called_once_a_step(kind, name, blocks_over_buffers):
    networks, hook = naive_and_buffer(), Hook()
    HOOKS[kind](networks[1].get_submodule(name), hook)
    with pytest.warns(UserWarning, match=re.escape(f"keeps more memory: {HOOKED[name]} has hooks")):
        assert_same_training(*networks, doubles())
    assert hook.calls == 3
    assert set(blocks_over_buffers) == {networks[1].features.denseblock2}


@pytest.mark.parametrize("kind", ["forward", "forward pre"])
def test_hooks_of_features_are_called_once_a_step(kind, blocks_over_buffers):
    networks, hook = naive_and_buffer(), Hook()
    HOOKS[kind](networks[1].features, hook)
    with pytest.warns(UserWarning, match=r"runs without its feature buffer.*: features \(Sequential\) has hooks"):
        assert_same_training(*networks, doubles())
    assert hook.calls == 3
    assert blocks_over_buffers == []


@pytest.mark.parametrize("name", ["conv0", "norm0", "relu0", "pool0"])
def test_hooks_of_the_stem_are_called_once_a_step(name, blocks_over_buffers):
    networks, hook = naive_and_buffer(**IMAGENET), Hook()
    networks[1].features.get_submodule(name).register_forward_hook(hook)
    assert_same_training(*networks, doubles(side=32))
    assert hook.calls == 3
    assert len(blocks_over_buffers) == 6


def test_hooks_of_all_modules_are_called_once_a_step(blocks_over_buffers):
    networks, modules = naive_and_buffer(), []
    handle = register_module_forward_hook(lambda module, inputs, outputs: modules.append(module))
    try:
        with pytest.warns(UserWarning, match="there are hooks for all modules"):
            networks[1](doubles()).sum().backward()
    finally:
        handle.remove()
    called = [module for name, module in networks[1].named_modules() if name]
    assert sorted(map(id, modules)) == sorted(map(id, [*called, networks[1]]))
    assert blocks_over_buffers == []


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


CHANGES = {
    "a layer of another class": (
        partial(replace, "", lambda: Positive(12, 4, 4, 0, False)),
        r"denselayer2 \(Positive\) is of a class that it does not know",
    ),
    "a method of its own": (replace_forward, r"denselayer2 \(DenseLayer\) has a forward method of its own"),
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
    "convolution with bias": (
        partial(replace, ".conv1", lambda: nn.Conv2d(12, 16, 1)),
        r"denselayer2.conv1 \(Conv2d\) has other settings",
    ),
    "convolution with dilation": (
        partial(replace, ".conv2", lambda: nn.Conv2d(16, 4, 3, padding=2, dilation=2, bias=False)),
        r"denselayer2.conv2 \(Conv2d\) has other settings",
    ),
    "convolution in groups": (
        partial(replace, ".conv2", lambda: nn.Conv2d(16, 4, 3, padding=1, groups=2, bias=False)),
        r"denselayer2.conv2 \(Conv2d\) has other settings",
    ),
    "convolution that wraps around": (
        partial(replace, ".conv2", lambda: nn.Conv2d(16, 4, 3, padding=1, padding_mode="circular", bias=False)),
        r"denselayer2.conv2 \(Conv2d\) has other settings",
    ),
    "wider bottleneck convolution": (
        partial(replace, ".conv1", lambda: nn.Conv2d(12, 16, 3, padding=1, bias=False)),
        r"denselayer2.conv1 \(Conv2d\) has other settings",
    ),
    "norm without bias": (
        lambda network: setattr(network.get_submodule(LAYER).norm2, "bias", None),
        r"denselayer2.norm2 \(BatchNorm2d\) has no weight and bias",
    ),
    "no activation": (
        partial(replace, ".relu1", lambda: nn.Sequential()),
        r"denselayer2.relu1 \(Sequential\) is of another class than its name says",
    ),
    "pooling of the largest": (
        lambda network: setattr(network.features.transition1, "pool", nn.MaxPool2d(2)),
        r"pool \(MaxPool2d\) is of another class than its name says",
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
    with pytest.warns(UserWarning, match=f"runs without its feature buffer and keeps more memory: {reason}"):
        assert_same_training(*networks, doubles())
    assert set(blocks_over_buffers) == {networks[1].features.denseblock2}


PLAIN_CHANGES = {
    "a layer of another class": (
        partial(replace, "", lambda: PlainAndPositive(12, 4, 0, False)),
        r"denselayer2 \(PlainAndPositive\) is of a class that it does not know",
    ),
    "a smaller filter": (
        partial(replace, ".conv1", lambda: nn.Conv2d(12, 4, 1, bias=False)),
        r"denselayer2.conv1 \(Conv2d\) has other settings",
    ),
    "a filter that wraps around": (
        partial(replace, ".conv1", lambda: nn.Conv2d(12, 4, 3, padding=1, padding_mode="circular", bias=False)),
        r"denselayer2.conv1 \(Conv2d\) has other settings",
    ),
    "a convolution that is not called": (
        partial(replace, ".conv2", lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        r"denselayer2.conv1 \(Conv2d\) has other settings",
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
    reason = buffer_module.why_to_call(buffer.features.denseblock1, KNOWN_CLASSES)
    assert reason == "denselayer1.norm1 (SyncBatchNorm) is of a class that it does not know"
    with pytest.warns(UserWarning, match="SyncBatchNorm"):
        assert_same_training(naive, buffer, doubles())
    assert blocks_over_buffers == []


def with_features(network: DenseNet, *modules: tuple[str, nn.Module]) -> None:
    network.features = nn.Sequential(OrderedDict(modules)).double()


REARRANGED = {
    "one more": lambda modules: [*modules, ("identity", nn.Identity())],
    "renamed": lambda modules: [*modules[:-1], ("norm5", modules[-1][1])],
    "norm between": lambda modules: [*modules[:2], ("norm", nn.BatchNorm2d(20)), *modules[2:]],
}


@pytest.mark.parametrize("change", REARRANGED)
def test_rearranged_features_are_called(change, blocks_over_buffers):
    networks = naive_and_buffer()
    for network in networks:
        with_features(network, *REARRANGED[change](list(network.features.named_children())))
    with pytest.warns(UserWarning, match="its features have been rearranged"):
        assert_same_training(*networks, doubles())
    assert blocks_over_buffers == []


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


# Copies, replicas and processes


@pytest.mark.parametrize("config", [SMALL | {"drop_rate": 0.2}, PLAIN | DROPPING], ids=["bottlenecks", "plain"])
def test_a_copy_in_any_form_trains_on_as_the_original(config):
    network = naive_and_buffer(**config)[1]
    train(network, doubles(), steps=1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    loaded = DenseNet(**config, efficient="buffer").double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded]

    expected = train(network, doubles(), steps=2)
    for duplicate in copies:
        for left, right in zip(expected, train(duplicate, doubles(), steps=2), strict=True):
            assert unequal(left, right) == []


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


# Fewer bits


def relative_errors(actual: dict[str, Tensor], truth: dict[str, Tensor], kind: str) -> float:
    """Root mean square, over the tensors of a kind, of the distance from the truth relative to its length."""
    names = [name for name in truth if kind in name]
    errors = [(actual[name].double() - truth[name]).norm() / truth[name].norm() for name in names]
    assert errors
    return sqrt(sum(error.item() ** 2 for error in errors) / len(errors))


@pytest.mark.parametrize("dropout", [{}, {"drop_rate": 0.2}, DROPPING], ids=["nothing", "layers", "convolutions"])
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
def test_errors_of_fewer_bits_are_those_of_the_naive_network(precision, memory_format, config, dropout):
    config = config | dropout | {"growth_rate": 8}
    naive, buffer = (network.to(memory_format=memory_format) for network in naive_and("buffer", **config))
    images = random_images(side=12, images=6).contiguous(memory_format=memory_format)
    (truth,) = train(copy.deepcopy(naive).double(), images.double(), steps=1)
    (expected,), (actual,) = (train(network, images, steps=1, precision=precision) for network in (naive, buffer))
    # The buffer's own format is channels_last, whose norms add up in another order and with up to twice the error.
    factor, rounding = (1.5, 0) if memory_format is torch.channels_last else (3, 1e-7)
    for kind in ("gradient of images", "gradient of features", "gradient of classifier", "logits", "running"):
        error = relative_errors(expected, truth, kind)
        assert relative_errors(actual, truth, kind) < factor * error + rounding, kind
        assert 0 < error < 0.4
    assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}


@pytest.mark.parametrize("form", [*KINDS.values(), IMAGENET], ids=[*KINDS, "imagenet"])
def test_autocast_may_end_before_the_backward_pass_or_after_it(form):
    def step(of_backward: Callable[[], AbstractContextManager]) -> dict[str, Tensor]:
        network = naive_and("buffer", **({"drop_rate": 0.2} | form))[1]
        images = random_images(side=32).requires_grad_()
        with BF16():
            loss = F.cross_entropy(network(images), torch.arange(4))
        with of_backward():
            loss.backward()
        return record(network, **{"gradient of images": images.grad})

    outside, inside = step(nullcontext), step(BF16)
    assert unequal(outside, inside) == []
    assert {t.dtype for name, t in inside.items() if "gradient of " in name or "running" in name} == {torch.float32}


def test_autocast_computes_in_its_type():
    network = naive_and("buffer", **SMALL)[1]
    images = random_images()
    others = [images, *network.parameters()]
    kept = {}
    for name, precision in (("float32", nullcontext), ("bf16", BF16)):
        with precision():
            kept[name] = bytes_saved_for_backward(partial(network, images), without=others)
    assert kept["bf16"] < 0.7 * kept["float32"]


def test_norms_of_16_bits_are_called(blocks_over_buffers):
    naive, buffer = (network.bfloat16() for network in naive_and("buffer", **SMALL))
    images = random_images().bfloat16()
    with pytest.warns(UserWarning, match="has parameters of 16 bits"):
        assert_same_training(naive, buffer, images, tolerance=0)
    assert blocks_over_buffers == []


# Compilers


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


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("config", [*KINDS.values(), SMALL | {"drop_rate": 0.2}], ids=[*KINDS, "dropping in layers"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_training_on_a_gpu_is_the_same(memory_format, config):
    networks = naive_and_buffer(**(config | {"growth_rate": 12}))
    naive, buffer = (network.cuda().to(memory_format=memory_format) for network in networks)
    assert_same_training(naive, buffer, doubles(side=16).cuda().contiguous(memory_format=memory_format))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_errors_on_a_gpu_are_those_of_the_naive_network(dtype, memory_format):
    config = SMALL | {"growth_rate": 8}
    naive, buffer = (network.cuda().to(memory_format=memory_format) for network in naive_and("buffer", **config))
    images = random_images(side=16, images=8).cuda().contiguous(memory_format=memory_format)
    precision = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    (truth,) = train(copy.deepcopy(naive).double(), images.double(), steps=1)
    (expected,), (actual,) = (train(network, images, steps=1, precision=precision) for network in (naive, buffer))
    for kind in ("gradient of images", "gradient of features", "logits", "running"):
        assert relative_errors(actual, truth, kind) < 2 * relative_errors(expected, truth, kind)


@pytest.mark.gpu
def test_data_parallel_on_all_gpus_is_the_same():
    naive, buffer = (nn.DataParallel(network.cuda()) for network in naive_and_buffer(growth_rate=12))
    assert_same_training(naive, buffer, doubles(side=16, images=8 * torch.cuda.device_count()).cuda())


@pytest.mark.gpu
@OF_ALL_KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_on_a_gpu_never_waits_for_it(dtype, config):
    network, images = naive_and("buffer", **config)[1].cuda(), random_images(side=16).cuda()
    labels = torch.arange(4, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
