"""Load weights that another program has trained, after checking that all of them fit."""

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from reprlib import Repr
from typing import Any

import torch
from torch import Tensor

from .densenet import DenseNet
from .first_convolution import FIRST_CONVOLUTION, with_adapted_input
from .weight_names import COUNTER, find_places, named_as_own
from .weight_shapes import arguments_of

CLASSIFIER = ("classifier.weight", "classifier.bias")
VARIANCE = "running_var"
NAMED = 3  # entries of each kind in a message

_foreign = Repr()
_foreign.maxstring = 80  # characters of a name that came with the weights


def load_weights(
    network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False, adapt_input: bool = False
) -> list[str]:
    """Load the weights of a DenseNet of the same shape, of this program or of another one.

    The names may be those of this program and of efficient_densenet_pytorch, of torchvision and timm (the dotted ones
    in torchvision's files too, as `norm.1`), of MONAI's networks for images, of andreasveit/densenet-pytorch, or of
    pytorchcv. They may have the prefixes of wrappers (DataParallel, AveragedModel, torch.compile and FSDP) and any
    other prefix that all tensors share, such as `model.` in checkpoints of Lightning. Numbers, texts and integer
    tensors without dimensions beside the weights, such as the counter of AveragedModel, are ignored. Tensors are copied
    into those of the network, which keep their dtype and device: either all that are given, or none.

    If there are weights in several places, those under "state_dict", "model" and the like are preferred, and those that
    are averaged over training ("state_dict_ema", "model_ema", ...) come last. See `weight_places`.

    Args:
        network: The network to change.
        state_dict: Tensors by name, or a dict that holds such a dict under any key.
        replace_classifier: Ignore a classifier that is missing or has another shape, to train on other classes. The
            network keeps its own. Everything else must fit.
        adapt_input: Adapt a first convolution for images with another number of channels, see
            `models.first_convolution`. `input_channels` tells what number that was.

    Returns:
        The network's names of all tensors that were not loaded: the classifier if it was ignored, and counters
        `num_batches_tracked` of norm layers that the file does not have.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape, or nothing tells which of several places to
            take. The message is one line and names the first tensors of each kind.

    References:
        The names are those of torchvision's models/densenet.py, of monai/networks/nets/densenet.py, of densenet.py in
        andreasveit/densenet-pytorch, and of densenet.py and densenet_cifar.py in pytorchcv/models.
    """
    given, left = fitting_weights(network, state_dict, replace_classifier=replace_classifier, adapt_input=adapt_input)
    network.load_state_dict(network.state_dict() | given)
    return left


def fitting_weights(
    network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False, adapt_input: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the tensors that `load_weights` would load, without loading them; the network may be on `meta`.

    Args:
        network: The network to compare with.
        state_dict: As for `load_weights`.
        replace_classifier: As for `load_weights`.
        adapt_input: As for `load_weights`.

    Returns:
        The tensors by the network's names, and the names that `load_weights` would return.

    Raises:
        ValueError: If the weights do not fit, as in `load_weights`.
    """
    own = network.state_dict()
    given = _with_own_names(_required_dict(state_dict), own)
    if adapt_input:
        given = with_adapted_input(given, own)
    left = {name for name in own if name.endswith(COUNTER) and name not in given}
    if replace_classifier and any(name not in given or _misfit(given[name], own[name]) for name in CLASSIFIER):
        left.update(CLASSIFIER)
        given = {name: value for name, value in given.items() if name not in CLASSIFIER}
    _require_fit(given, own, left)
    return given, [name for name in own if name in left]


def input_channels(network: DenseNet, state_dict: Mapping[str, Any]) -> int:
    """Return the number of channels of the images that weights are for, before `load_weights` adapts them.

    Args:
        network: The network that the weights fit.
        state_dict: As for `load_weights`.
    """
    return _with_own_names(_required_dict(state_dict), network.state_dict())[FIRST_CONVOLUTION].shape[1]


def densenet_arguments(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Read from names and shapes of weights which network they are of, for `DenseNet(**densenet_arguments(weights))`.

    Args:
        state_dict: As for `load_weights`.

    Returns:
        growth_rate, block_config, compression, num_init_features, bn_size, num_classes, in_channels and small_inputs.

    Raises:
        ValueError: If they are of no DenseNet whose names are known, or nothing tells which of several places to take.
    """
    return arguments_of(dict(named_as_own(find_places(_required_dict(state_dict)))))


def weight_places(network: DenseNet, state_dict: Mapping[str, Any]) -> list[str]:
    """Return the keys and prefixes under which a dict holds the network's weights; `load_weights` takes the first.

    They are joined as in "state_dict.model", and an empty text if the dict itself is the network's `state_dict`.

    Raises:
        ValueError: If nothing tells which place to take.
    """
    return [place.label for place in find_places(_required_dict(state_dict), network.state_dict().keys())]


def require_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Make sure that a network with these weights can compute: all are finite, and no variance is negative.

    Raises:
        ValueError: If this does not hold. The message names the first few tensors.
    """
    faults = {name: _fault(name, value) for name, value in state_dict.items() if value.is_floating_point()}
    found = [f"{_foreign.repr(name)} is {fault}" for name, fault in faults.items() if fault]
    if found:
        raise ValueError(f"its tensor {_first(found)}")


def torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state_dict of a network of the ImageNet form, so that torchvision's DenseNet loads it."""
    return {name.replace("features.norm_final.", "features.norm5."): tensor for name, tensor in state_dict.items()}


def _required_dict(state_dict: Any) -> Mapping[Any, Any]:
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is of type {type(state_dict).__name__}, but must be a dict of tensors by name")
    return state_dict


def _with_own_names(content: Mapping[Any, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in named_as_own(find_places(content, own.keys())):
        if name not in own and _is_bookkeeping(value):
            continue
        if name in named:
            raise ValueError(f"the weights hold {_foreign.repr(name)} under two names")
        named[name] = value
    return named


def _is_bookkeeping(value: Any) -> bool:
    """Tell whether a value describes a run and cannot be a weight: a number, a text or a counter."""
    if isinstance(value, Tensor):
        return not (value.is_nested or value.dim() or value.is_floating_point() or value.is_complex())
    return value is None or isinstance(value, str | bytes | Number)


def _fault(name: str, value: Tensor) -> str:
    """Say why a tensor is useless; empty if it is not."""
    if not value.numel():
        return ""
    comparable = value.float() if value.itemsize == 1 else value  # torch does not compare float8
    smallest, largest = (bound.item() for bound in comparable.aminmax())
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        return "NaN or infinite"
    return "negative" if name.endswith(VARIANCE) and smallest < 0 else ""


def _require_fit(given: Mapping[str, Any], own: Mapping[str, Tensor], left: set[str]) -> None:
    missing = [name for name in own if name not in given and name not in left]
    unexpected = [_foreign.repr(name) for name in given if name not in own]
    misfits = {name: _misfit(given[name], own[name]) for name in own if name in given}
    others = [f"{name} is {misfit}" for name, misfit in misfits.items() if misfit]
    kinds = {"missing": missing, "unexpected": unexpected, "unfit": others}
    found = [f"{kind}: {_first(entries)}" for kind, entries in kinds.items() if entries]
    if found:
        raise ValueError(f"the weights do not fit the network{_other_shape(given, own)}; {'; '.join(found)}")


def _other_shape(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """Name the arguments of `DenseNet`, besides the number of classes, by which weights differ from those of a network.

    The text is empty if there are none, or the weights do not tell.
    """
    try:
        theirs, ours = arguments_of({**given, **{name: own[name] for name in CLASSIFIER}}), arguments_of(own)
    except ValueError:
        return ""
    differences = [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]
    return f", as they are of one with {' and '.join(differences)}" if differences else ""


def _misfit(value: Any, own: Tensor) -> str:
    """Say why a value cannot be copied into a tensor of the network; empty if it can."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}, not a tensor"
    is_plain = value.layout == torch.strided and not (value.is_nested or value.is_meta or value.is_quantized)
    if not is_plain or value.is_complex() or value.is_floating_point() != own.is_floating_point():
        return f"{_kind(value)} that does not turn into {own.dtype}"
    if value.shape != own.shape:
        return f"{tuple(value.shape)}, not {tuple(own.shape)}"
    return ""


def _kind(value: Tensor) -> str:
    if value.is_nested:
        return "a nested tensor"
    layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    return f"a {layout}tensor of {value.dtype} on {value.device.type}"


def _first(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return ", ".join(entries[:NAMED]) + more
