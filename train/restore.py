"""A checkpoint put into network, optimizer and scaler, once all of it is known to fit.

Only numbers are taken from it, and they are copied into tensors that the program has made, so that nothing depends on
how those of the file lie in memory. The settings of the optimizer are those of the flags.
"""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor, nn

from train import runtime
from train.errors import UserError
from train.run.checkpoint import Checkpoint, why_no_tensor
from train.run.names import CONFIG
from train.step import Stepper


@torch.no_grad()
def restore(network: nn.Module, stepper: Stepper, checkpoint: Checkpoint, folder: Path) -> None:
    """Let a network and what trains it go on from a checkpoint; either all of it is put there, or nothing.

    The state_dicts of the checkpoint become those of the program, in its own order and memory format.

    Args:
        network: Of the run.
        stepper: Trains it. The optimizer has its buffers of momentum already.
        checkpoint: Not an empty one.
        folder: Of the run, for the message.

    Raises:
        UserError: If the checkpoint is of another network or optimizer, or holds numbers that nothing can be made of.
    """
    whose = f"the checkpoint in {folder} is of another"
    own = network.state_dict()
    for part in (checkpoint.network, checkpoint.chosen):
        if reason := _why_unfit(part, own):
            raise UserError(f"{whose} network than its {CONFIG} says: {reason}")
    buffers = _own_buffers(stepper.optimizer)
    given = _given_buffers(checkpoint.optimizer)
    if reason := _why_unfit(given, buffers):
        raise UserError(f"{whose} optimizer: its buffers are not those of momentum: {reason}")
    for part in (checkpoint.network, checkpoint.chosen, given):
        if name := next((name for name, value in part.items() if not value.isfinite().all()), None):
            raise UserError(f"the checkpoint in {folder} cannot be used: {name} is NaN or infinite in places")
    try:
        stepper.restore_scale(checkpoint.scaler)
    except ValueError as error:
        raise UserError(f"{whose} optimizer: {error}") from error
    for name, buffer in (own | buffers).items():
        buffer.copy_(checkpoint.network[name] if name in own else given[name])
    checkpoint.chosen = runtime.copy_to_cpu({name: checkpoint.chosen[name] for name in own})


def _own_buffers(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's buffers, by names that say which parameter they are of."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    states = enumerate(optimizer.state.get(weight, {}) for weight in weights)
    return {_name(index): state["momentum_buffer"] for index, state in states if "momentum_buffer" in state}


def _given_buffers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an optimizer's state_dict, which may hold anything; plain SGD has none, or None."""
    states = state.get("state")
    if not isinstance(states, dict):
        return {}
    buffers = {
        _name(index): state.get("momentum_buffer") if isinstance(state, dict) else state
        for index, state in states.items()
    }
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def _name(index: Any) -> str:
    return f"the momentum of parameter {index if type(index) is int else type(index).__name__}"


def _why_unfit(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """Say what cannot be copied into the program's own tensors; nothing if all of it can."""
    for name in own:
        if name not in given:
            return f"{name} is missing"
        value = given[name]
        if reason := why_no_tensor(value):
            return f"{name} is {reason}"
        if value.shape != own[name].shape:
            return f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}"
        if value.dtype != own[name].dtype:
            return f"{name} is {value.dtype}, not {own[name].dtype}"
    further = [name for name in given if name not in own]
    return f"{short_repr(further[0])} is no part of it" if further else ""
