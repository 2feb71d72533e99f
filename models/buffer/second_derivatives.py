"""Gradients that cannot be differentiated once more, and say so to whoever tries."""

from typing import Any

import torch
from torch import Tensor

MESSAGE = (
    "a feature buffer has no second derivatives; build the network with efficient='naive', whose state_dict has the "
    "same names"
)


class _Refusal(torch.autograd.Function):
    """The identity, whose own backward pass raises an error."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(MESSAGE)


def refuse_derivatives(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same gradients, but a derivative of them is an error with a message, and not zero.

    Args:
        gradients: Of a backward pass that runs with `create_graph=True`, computed without a graph. None stays None.
    """
    given = [grad for grad in gradients if grad is not None]
    refusing = iter(_Refusal.apply(*(grad.detach().requires_grad_() for grad in given)))
    return tuple(grad if grad is None else next(refusing) for grad in gradients)
