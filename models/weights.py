"""Load weights that another program has trained, once all of them are known to fit."""

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from reprlib import Repr
from typing import Any

import torch
from torch import Tensor

from .densenet import DenseNet
from .weight_names import COUNTER, find_places, named_as_own

CLASSIFIER = ("classifier.weight", "classifier.bias")
VARIANCE = "running_var"
NAMED = 3  # entries of each kind in a message

_foreign = Repr()
_foreign.maxstring = 80  # characters of a name that came with the weights


def load_weights(network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False) -> list[str]:
    """Load the weights of a DenseNet of the same shape: of this program, of an earlier efficient one, or torchvision's.

    The names may have prefixes of wrappers: those of DataParallel, AveragedModel, torch.compile and FSDP, and any other
    that all tensors share, as `model.` in checkpoints of Lightning. The last norm layer may be called `norm_final` or,
    as in torchvision, `norm5`, and the parts of dense layers may have the dotted names of torchvision's files
    (`norm.1`, `conv.2`). Numbers, texts and integer tensors without dimensions that stand beside the weights, as the
    counter of AveragedModel, are passed over. Tensors are copied into those of the network, which keep their type and
    device: either all that are given, or none.

    If there are weights in several places, those under "state_dict", "model" and the like are taken before others, and
    those that are averaged over training ("state_dict_ema", "model_ema", ...) last. See `weight_places`.

    Args:
        network: Is changed.
        state_dict: Tensors by name, or a dict that holds such a dict under any key.
        replace_classifier: Let a classifier that is missing or of another shape be, as for training on other classes.
            The network's own stays as it is. All else must fit.

    Returns:
        The network's names of what was not loaded: the classifier if it was let be, and counters
        `num_batches_tracked` of norm layers that the file does not have.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape, or nothing tells which of several weights
            are meant. The message is one line and names the first of each kind.

    References:
        torchvision's models/densenet.py, which has both kinds of names.
    """
    given, left = fitting_weights(network, state_dict, replace_classifier=replace_classifier)
    network.load_state_dict(network.state_dict() | given)
    return left


def fitting_weights(
    network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Find what `load_weights` would load and return, without loading it; the network may be on `meta`.

    Raises:
        ValueError: If `load_weights` would raise it.
    """
    own = network.state_dict()
    given = _with_own_names(_required_dict(state_dict), own)
    left = {name for name in own if name.endswith(COUNTER) and name not in given}
    if replace_classifier and any(name not in given or _misfit(given[name], own[name]) for name in CLASSIFIER):
        left.update(CLASSIFIER)
        given = {name: value for name, value in given.items() if name not in CLASSIFIER}
    _require_fit(given, own, left)
    return given, [name for name in own if name in left]


def weight_places(network: DenseNet, state_dict: Mapping[str, Any]) -> list[str]:
    """Keys and prefixes under which a dict holds the network's weights; the first is the one that `load_weights` takes.

    A place is written as in "state_dict.model"; it is an empty text if the dict itself is the network's `state_dict`.

    Raises:
        ValueError: If nothing tells which place to take.
    """
    return [place.label for place in find_places(_required_dict(state_dict), network.state_dict().keys())]


def require_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Make sure that a network with these weights can give an answer: all are finite, and no variance is negative.

    Raises:
        ValueError: If a tensor is not like that. The message names the first few.
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
    for name, value in named_as_own(find_places(content, own.keys()), own.keys()):
        if name not in own and _is_bookkeeping(value):
            continue
        if name in named:
            raise ValueError(f"the weights hold {_foreign.repr(name)} under two names")
        named[name] = value
    return named


def _is_bookkeeping(value: Any) -> bool:
    """Whether a value says something about a run, and cannot be a weight: a number, a text or a counter."""
    if isinstance(value, Tensor):
        return not (value.is_nested or value.dim() or value.is_floating_point() or value.is_complex())
    return value is None or isinstance(value, str | bytes | Number)


def _fault(name: str, value: Tensor) -> str:
    """Say what makes a tensor useless; empty if nothing does."""
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
        raise ValueError(f"the weights do not fit the network; {'; '.join(found)}")


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
