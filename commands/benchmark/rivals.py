"""Other ways to train the same network, with the parameter names of ours so that one state_dict fits all."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet

from commands.benchmark.step import CLASSES
from commands.networks import LARGEST_SMALL_IMAGES

MEMORY_BUDGET = 0.5  # share of the activations that torch.compile may keep

# Layers in each block of the networks for ImageNet. torchvision has a function for all but the last.
BLOCKS = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
    "densenet161": (6, 12, 36, 24),
    "densenet264": (6, 12, 64, 48),
}


def is_in_torchvision(network: str) -> bool:
    """Whether torchvision's DenseNet can be this network; it always has bottlenecks."""
    return network == "densenet_bc" or network in BLOCKS


def torchvision_densenet(
    *, network: str, depth: int, growth_rate: int, drop_rate: float, image_size: int, memory_efficient: bool
) -> nn.Module:
    """Build torchvision's DenseNet as one of our networks: (N, 3, H, W) to (N, 10). See `is_in_torchvision`.

    The last norm is called norm_final, not norm5. For small images it has one 3x3 convolution in place of 7x7, norm,
    ReLU and pooling.
    """
    model = DenseNet(
        growth_rate,
        block_config=BLOCKS.get(network, ((depth - 4) // 6,) * 3),
        num_init_features=2 * growth_rate,
        drop_rate=drop_rate,
        num_classes=CLASSES,
        memory_efficient=memory_efficient,
    )
    layers = OrderedDict(model.features.named_children())
    if network not in BLOCKS and image_size <= LARGEST_SMALL_IMAGES:
        for name in ("norm0", "relu0", "pool0"):
            del layers[name]
        layers["conv0"] = nn.Conv2d(3, 2 * growth_rate, kernel_size=3, padding=1, bias=False)
    layers["norm_final"] = layers.pop("norm5")
    model.features = nn.Sequential(layers)
    return model


def checkpoint_whole_layers(network: nn.Module) -> nn.Module:
    """Let every dense layer and transition of a network run again in the backward pass; return the network.

    Running statistics are updated twice in a step, as they are wherever a norm is checkpointed without further care.
    """
    for name, module in network.named_modules():
        if re.search(r"\.(denselayer|transition)\d+$", name):
            module.forward = _checkpointed(module.forward)
    return network


def _checkpointed(forward: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    def call(features: Tensor | list[Tensor]) -> Tensor:
        # The block appends to its list before the second call.
        return checkpoint(forward, features if isinstance(features, Tensor) else [*features], use_reentrant=False)

    return call


def compile_within_budget(network: nn.Module) -> nn.Module:
    """Let torch.compile choose what to compute again, within MEMORY_BUDGET; return the network."""
    torch._functorch.config.activation_memory_budget = MEMORY_BUDGET  # of the process; nothing else compiles in it
    network.compile()
    return network
