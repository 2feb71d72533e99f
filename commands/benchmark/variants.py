"""The ways to train the network that are compared: our strategies, and other implementations.

Other implementations have the parameter names of our network, so that one state_dict fits all of them.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet

from commands.benchmark.step import CLASSES, MEMORY_FORMATS, SEED, Case, Step
from commands.networks import NetworkSettings
from models import DEPTH_RULES, IMAGENET_NETWORKS, STRATEGIES
from train import runtime

NAIVE = "naive"
MEMORY_BUDGET = 0.5  # fraction of the activations that torch.compile may keep

Build = Callable[[NetworkSettings], nn.Module]


@dataclass(frozen=True)
class Variant:
    """A way to train the network.

    Attributes:
        name: Its name in the table.
        memory_format: A key of MEMORY_FORMATS.
        build: Builds the network.
        is_ours: Whether it must agree with naive.
        is_compiled: Whether the first step takes minutes.
    """

    name: str
    memory_format: str
    build: Build
    is_ours: bool = False
    is_compiled: bool = False

    def step(self, case: Case, weights: dict[str, Tensor] | None = None) -> Step:
        """Build a network, with the given weights or with random ones, and return its step."""
        network = self.build(case.network)
        if weights is not None:
            network.load_state_dict(weights)
        return case.step(network, self.memory_format)


def all_variants(network: NetworkSettings, *, memory_format: str, with_compile: bool) -> list[Variant]:
    """Naive in both memory formats, the given one first, then our other strategies, then other implementations.

    Args:
        network: The network; torchvision is included where it can be the same network.
        memory_format: Memory format of all variants except the second.
        with_compile: Whether to include torch.compile.
    """
    (other_format,) = MEMORY_FORMATS.keys() - {memory_format}
    naive = partial(build_ours, NAIVE)

    def changed(change: Callable[[nn.Module], nn.Module]) -> Build:
        return lambda settings: change(naive(settings))

    ours = [Variant(NAIVE, memory_format, naive, is_ours=True), Variant(NAIVE, other_format, naive, is_ours=True)]
    others = (strategy for strategy in STRATEGIES if strategy != NAIVE)
    ours += [Variant(strategy, memory_format, partial(build_ours, strategy), is_ours=True) for strategy in others]
    found: dict[str, Build] = {}
    if is_in_torchvision(network):
        found["torchvision"] = partial(torchvision_densenet, memory_efficient=False)
        found["torchvision memory_efficient"] = partial(torchvision_densenet, memory_efficient=True)
    found["whole layers checkpointed"] = changed(checkpoint_whole_layers)
    baselines = [Variant(name, memory_format, build) for name, build in found.items()]
    if with_compile:
        name = f"torch.compile, budget {MEMORY_BUDGET}"
        baselines.append(Variant(name, memory_format, changed(compile_within_budget), is_compiled=True))
    return ours + baselines


def build_ours(strategy: str, network: NetworkSettings) -> nn.Module:
    """Build our network: (N, 3, H, W) to (N, 10)."""
    return replace(network, efficient=strategy).build(CLASSES)


def without_second_naive(variants: Sequence[Variant]) -> list[Variant]:
    """The variants without naive in its other memory format, which takes about the same memory."""
    return [variants[0], *variants[2:]]


def random_weights(naive: Variant, case: Case) -> dict[str, Tensor]:
    """Build a network and return its state_dict, the same at every call.

    Scales and shifts of norm layers are random too: at their initial values, 1 and 0, a strategy could forget about
    them and still be right.
    """
    runtime.seed_weights(SEED)
    network = naive.build(case.network)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.5)
    return network.state_dict()


def is_in_torchvision(network: NetworkSettings) -> bool:
    """Whether torchvision's DenseNet can be this network; it always has bottlenecks."""
    return network.network != "densenet"


def torchvision_densenet(network: NetworkSettings, *, memory_efficient: bool) -> nn.Module:
    """Build torchvision's DenseNet as one of our networks: (N, 3, H, W) to (N, 10). See `is_in_torchvision`.

    The last norm is called norm_final, not norm5. For small images, one 3x3 convolution replaces the 7x7 convolution,
    norm, ReLU and pooling.
    """
    imagenet = IMAGENET_NETWORKS.get(network.network)
    model = DenseNet(
        network.growth_rate,
        block_config=imagenet.block_config if imagenet else DEPTH_RULES["densenet_bc"].block_config(network.depth),
        num_init_features=2 * network.growth_rate,
        drop_rate=network.drop_rate,
        num_classes=CLASSES,
        memory_efficient=memory_efficient,
    )
    layers = OrderedDict(model.features.named_children())
    if network.is_small:
        for name in ("norm0", "relu0", "pool0"):
            del layers[name]
        layers["conv0"] = nn.Conv2d(3, 2 * network.growth_rate, kernel_size=3, padding=1, bias=False)
    layers["norm_final"] = layers.pop("norm5")
    model.features = nn.Sequential(layers)
    return model


def checkpoint_whole_layers(network: nn.Module) -> nn.Module:
    """Let every dense layer and transition of a network run again in the backward pass; return the network.

    Running statistics are updated twice in a step, as always when a norm is simply checkpointed.
    """
    for name, module in network.named_modules():
        if re.search(r"\.(denselayer|transition)\d+$", name):
            module.forward = _checkpointed(module.forward)
    return network


def _checkpointed(forward: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    def call(features: Tensor | list[Tensor]) -> Tensor:
        # The list is copied because the block appends to it before the second call.
        return checkpoint(forward, features if isinstance(features, Tensor) else [*features], use_reentrant=False)

    return call


def compile_within_budget(network: nn.Module) -> nn.Module:
    """Let torch.compile choose what to recompute, within MEMORY_BUDGET; return the network."""
    import torch._functorch.config as settings

    settings.activation_memory_budget = MEMORY_BUDGET  # of the process; nothing else compiles in it
    network.compile()
    return network
