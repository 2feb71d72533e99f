"""Weights that another program has trained: under which names they come, and what has to fit before they are loaded."""

import re
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

import torch
from torch import Tensor

from .densenet import DenseNet

# Names under which training programs put a state_dict beside other things. "model_state_dict" is that of PyTorch's
# tutorials, "chosen" that of checkpoint.pt in the folder of a run.
WRAPPINGS = ("state_dict", "model", "model_state_dict", "chosen")
CLASSIFIER = ("classifier.weight", "classifier.bias")
COUNTER = "num_batches_tracked"  # of a norm layer; files that are older than it do without
NAMED = 3  # so many entries of each kind stand in a message

_foreign = Repr()
_foreign.maxstring = 80  # characters of a name that came with the weights


def load_weights(network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False) -> list[str]:
    """Load the weights of a DenseNet of the same shape: of this program, of an earlier efficient one, or torchvision's.

    Names may begin with `module.` and `_orig_mod.`, which DataParallel and torch.compile put there. The last norm layer
    may be called `norm_final` or, as in torchvision, `norm5`, and the parts of dense layers may have the dotted names
    of torchvision's files (`norm.1`, `conv.2`). Tensors are copied into those of the network, which keep their type
    and device: either all that are given, or none.

    Args:
        network: Is changed.
        state_dict: Tensors by name, or a dict that holds such a dict under one of the names in `WRAPPINGS`.
        replace_classifier: Let a classifier that is missing or of another shape be, as for training on other classes.
            The network's own stays as it is. All else must fit.

    Returns:
        The network's names of what was not loaded: the classifier if it was let be, and counters
        `num_batches_tracked` of norm layers that the file does not have.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape. The message is one line and names the first
            of each kind.

    References:
        torchvision's models/densenet.py, which has both kinds of names.
    """
    given, left = fitting_weights(network, state_dict, replace_classifier=replace_classifier)
    network.load_state_dict(network.state_dict() | given)
    return left


def fitting_weights(
    network: DenseNet, state_dict: Mapping[str, Any], *, replace_classifier: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """What `load_weights` would load and what it would return, without loading it; the network may be on `meta`.

    Raises:
        ValueError: As there.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is of type {type(state_dict).__name__}, but must be a dict of tensors by name")
    given, own = _with_own_names(_unwrapped(state_dict)), network.state_dict()
    left = {name for name in own if name.endswith(COUNTER) and name not in given}
    if replace_classifier and any(name not in given or _misfit(given[name], own[name]) for name in CLASSIFIER):
        left.update(CLASSIFIER)
        given = {name: value for name, value in given.items() if name not in CLASSIFIER}
    _require_fit(given, own, left)
    return given, [name for name in own if name in left]


def torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state_dict of a network of the ImageNet form, so that torchvision's DenseNet loads it."""
    return {name.replace("features.norm_final.", "features.norm5."): tensor for name, tensor in state_dict.items()}


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((content[key] for key in WRAPPINGS if isinstance(content.get(key), Mapping)), content)


def _with_own_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in state_dict.items():
        own_name = _own_name(str(name))
        if own_name in renamed:
            raise ValueError(f"the weights hold {_foreign.repr(own_name)} under two names")
        renamed[own_name] = value
    return renamed


def _own_name(name: str) -> str:
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    name = re.sub(r"^features\.norm5\.", "features.norm_final.", name)
    return re.sub(r"(\.denselayer\d+\.(norm|conv))\.(?=[12]\.)", r"\1", name)


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
    """What a value is that cannot be copied into a tensor of the network; empty if it can."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}, not a tensor"
    if value.shape != own.shape:
        return f"{tuple(value.shape)}, not {tuple(own.shape)}"
    is_plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    if not is_plain or value.is_complex() or value.is_floating_point() != own.is_floating_point():
        return f"a tensor of {value.dtype} on {value.device.type} that does not turn into {own.dtype}"
    return ""


def _first(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return ", ".join(entries[:NAMED]) + more
