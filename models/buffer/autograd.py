"""Helpers for an autograd function: tensors in and out of structures, and a refusal of second derivatives."""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

MESSAGE = (
    "a feature buffer has no second derivatives; build the network with efficient='naive', whose state_dict has the "
    "same names"
)


class _TensorPlace:
    """Stands for a tensor that has been taken out of a structure."""


def flatten(value: Any) -> tuple[Any, list[Tensor]]:
    """Take all tensors out of a structure.

    Autograd watches tensors that are handed to `save_for_backward` for changes, and frees them in time; tensors that
    are kept in any other way it does not know.

    Args:
        value: Tuples, lists, NamedTuples and dataclasses, in one another, with tensors and anything else in them.

    Returns:
        The structure without its tensors, and the tensors, for `unflatten`.
    """
    tensors: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return _TensorPlace

    return _map_leaves(value, take), tensors


def unflatten(structure: Any, tensors: Iterable[Tensor]) -> Any:
    """Build the structure again from what `flatten` has returned; the tensors may be others."""
    remaining = iter(tensors)
    return _map_leaves(structure, lambda leaf: next(remaining) if leaf is _TensorPlace else leaf)


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Copy a structure, with `function` applied to all that is no tuple, list, NamedTuple or dataclass, in order."""
    if isinstance(value, tuple | list):
        items = [_map_leaves(item, function) for item in value]
        return getattr(type(value), "_make", type(value))(items)  # NamedTuples have `_make`
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _map_leaves(getattr(value, field.name), function) for field in fields(value)})
    return function(value)


class _Refusal(torch.autograd.Function):
    """The identity, whose own backward pass raises an error."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(MESSAGE)


def refuse_derivatives(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Return the same gradients, but let their derivatives be an error with a message, and not zero.

    Args:
        gradients: The gradients of a backward pass with `create_graph=True`, computed without a graph. None stays None.
    """
    given = [grad for grad in gradients if grad is not None]
    refusing = iter(_Refusal.apply(*(grad.detach().requires_grad_() for grad in given)))
    return tuple(grad if grad is None else next(refusing) for grad in gradients)
