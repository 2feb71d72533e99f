"""What is compared: our strategies and their rivals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from commands.benchmark import rivals
from commands.benchmark.step import MEMORY_FORMATS, SEED, Case, Step
from train import runtime

NAIVE = "naive"
Build = Callable[..., nn.Module]  # takes the settings of a Case as keywords


@dataclass(frozen=True)
class Variant:
    """A way to train the network.

    Attributes:
        name: What the table calls it.
        memory_format: A key of MEMORY_FORMATS.
        build: Makes the network.
        is_ours: Whether it must agree with naive.
        is_compiled: Whether the first step takes minutes.
    """

    name: str
    memory_format: str
    build: Build
    is_ours: bool = False
    is_compiled: bool = False

    def step(self, case: Case, weights: dict[str, Tensor] | None = None) -> Step:
        """Build a network, with the given weights or any, and return its step."""
        network = self.build(**case.settings)
        if weights is not None:
            network.load_state_dict(weights)
        return case.step(network, self.memory_format)


def all_variants(
    build: Callable[..., nn.Module], strategies: Sequence[str], *, network: str, memory_format: str, with_compile: bool
) -> list[Variant]:
    """Naive in both memory formats, first the given one, then our other strategies, then rivals.

    Args:
        build: Makes our network from one of the strategies and the keywords of Build.
        strategies: Ours, naive among them.
        network: Its name; torchvision is a rival where it can be the same network.
        memory_format: Of all but the second.
        with_compile: Whether torch.compile is one of the rivals.
    """
    (other_format,) = MEMORY_FORMATS.keys() - {memory_format}
    naive = partial(build, NAIVE)

    def changed(change: Callable[[nn.Module], nn.Module]) -> Build:
        return lambda **settings: change(naive(**settings))

    ours = [Variant(NAIVE, memory_format, naive, is_ours=True), Variant(NAIVE, other_format, naive, is_ours=True)]
    others = (strategy for strategy in strategies if strategy != NAIVE)
    ours += [Variant(strategy, memory_format, partial(build, strategy), is_ours=True) for strategy in others]
    found: dict[str, Build] = {}
    if rivals.is_in_torchvision(network):
        found["torchvision"] = partial(rivals.torchvision_densenet, memory_efficient=False)
        found["torchvision memory_efficient"] = partial(rivals.torchvision_densenet, memory_efficient=True)
    found["whole layers checkpointed"] = changed(rivals.checkpoint_whole_layers)
    theirs = [Variant(name, memory_format, build) for name, build in found.items()]
    if with_compile:
        name = f"torch.compile, budget {rivals.MEMORY_BUDGET}"
        theirs.append(Variant(name, memory_format, changed(rivals.compile_within_budget), is_compiled=True))
    return ours + theirs


def without_second_naive(variants: Sequence[Variant]) -> list[Variant]:
    """The variants without naive in its other memory format, which takes about the same memory."""
    return [variants[0], *variants[2:]]


def draw_weights(naive: Variant, case: Case) -> dict[str, Tensor]:
    """Build a network and return its state_dict, the same at every call.

    Scales and shifts of norms are drawn too: as they are initialised, 1 and 0, a strategy could forget about them
    and still be right.
    """
    runtime.seed_weights(SEED)
    network = naive.build(**case.settings)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.5)
    return network.state_dict()
