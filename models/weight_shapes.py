"""Read from the shapes of weights which DenseNet they belong to."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

FIRST_LAYER = "features.denseblock1.denselayer1"
FIRST_NORM = re.compile(r"features\.denseblock(\d+)\.denselayer\d+\.norm1\.weight")
TRANSITION = re.compile(r"features\.transition\d+\.conv\.weight")


def arguments_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which `DenseNet` has tensors of these names and shapes.

    The first tensors of each kind decide. Whether the others fit shows when they are compared with such a network.

    Args:
        tensors: Tensors by this program's names; other values and other names make no difference.

    Returns:
        growth_rate, block_config, compression, num_init_features, bn_size, num_classes, in_channels and small_inputs.

    Raises:
        ValueError: If they belong to no DenseNet.
    """
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and not value.is_nested}
    shapes = {name: tuple(value.shape) for name, value in plain.items()}
    try:
        return _arguments(shapes)
    except KeyError as error:
        raise ValueError(f"the weights are of no DenseNet: there is no {error.args[0]}") from error


def _arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    has_bottlenecks = f"{FIRST_LAYER}.conv2.weight" in shapes
    growth_rate = _channels(shapes, f"{FIRST_LAYER}.conv{2 if has_bottlenecks else 1}")
    return {
        "growth_rate": growth_rate,
        "block_config": _block_config(shapes),
        "compression": _compression([shapes[name][:2] for name in filter(TRANSITION.fullmatch, shapes)]),
        "num_init_features": _channels(shapes, "features.conv0"),
        "bn_size": _channels(shapes, f"{FIRST_LAYER}.conv1") // growth_rate if has_bottlenecks else None,
        "num_classes": _channels(shapes, "classifier"),
        "in_channels": _input_channels(shapes),
        "small_inputs": "features.norm0.weight" not in shapes,
    }


def _channels(shapes: Mapping[str, tuple[int, ...]], module: str) -> int:
    """The output channels of a convolution or of the classifier."""
    name = f"{module}.weight"
    if not shapes[name] or not shapes[name][0]:
        raise ValueError(f"the weights are of no DenseNet: {name} has no values")
    return shapes[name][0]


def _input_channels(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The channels of the images that the first convolution takes."""
    name = "features.conv0.weight"
    if len(shapes[name]) < 2 or not shapes[name][1]:
        raise ValueError(f"the weights are of no DenseNet: {name} takes no channels")
    return shapes[name][1]


def _block_config(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The number of dense layers in each block."""
    layers = Counter(int(match[1]) for match in map(FIRST_NORM.fullmatch, shapes) if match)
    return tuple(layers[block] for block in range(1, len(layers) + 1))


def _compression(transitions: Sequence[tuple[int, ...]]) -> float:
    """The fraction of its channels that each transition keeps, rounded off: a round one if there is one.

    Args:
        transitions: For each transition, the number of channels that it keeps and the number of all.
    """
    if not transitions:
        return 0.5
    if any(len(channels) < 2 or not channels[1] for channels in transitions):
        raise ValueError("the weights are of no DenseNet: a transition has no channels")
    lowest = max(kept / given for kept, given in transitions)
    highest = min(1, *((kept + 1) / given for kept, given in transitions))
    middle = (lowest + highest) / 2
    for fraction in (0.5, 1.0, round(middle, 2)):
        if all(int(given * fraction) == kept for kept, given in transitions):
            return fraction
    return middle
