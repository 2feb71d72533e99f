"""Restore network, optimizer and scaler from a checkpoint, once all of it is known to fit.

Only values are taken from it. They are copied into the program's own tensors, so that nothing depends on the memory
layout of those in the file. The optimizer keeps the settings of the flags.
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
from train.run.config import CONFIG
from train.step import Stepper


@torch.no_grad()
def restore(network: nn.Module, stepper: Stepper, checkpoint: Checkpoint, folder: Path) -> None:
    """Restore a network and its training state from a checkpoint, either completely or not at all.

    The chosen weights in the checkpoint are brought into the program's own order and memory format.

    Args:
        network: The network of the run.
        stepper: Trains the network. Its optimizer has its momentum buffers already, and its average all tensors.
        checkpoint: A checkpoint that is not empty.
        folder: The folder of the run, for messages.

    Raises:
        UserError: If the checkpoint is of another network or optimizer, or holds values that are NaN or infinite.
    """
    whose = f"the checkpoint in {folder} is of another"
    own = network.state_dict()
    for part in (checkpoint.network, checkpoint.chosen):
        if reason := _why_unfit(part, own):
            raise UserError(f"{whose} network than its {CONFIG} says: {reason}")
    buffers = _own_buffers(stepper.optimizer)
    recorded = _recorded_buffers(checkpoint.optimizer)
    if reason := _why_unfit(recorded, buffers):
        raise UserError(f"{whose} optimizer: its buffers are not those of momentum: {reason}")
    average = stepper.average.state_dict() if stepper.average else {}
    if reason := _why_unfit(checkpoint.ema, average):
        raise UserError(f"{whose} average of the weights: {reason}")
    for part in (checkpoint.network, checkpoint.chosen, recorded, checkpoint.ema):
        if name := next((name for name, value in part.items() if not value.isfinite().all()), None):
            raise UserError(f"the checkpoint in {folder} cannot be used: {name} is NaN or infinite in places")
    try:
        stepper.restore_scale(checkpoint.scaler)
    except ValueError as error:
        raise UserError(f"{whose} optimizer: {error}") from error
    for name, buffer in (own | buffers).items():
        buffer.copy_(checkpoint.network[name] if name in own else recorded[name])
    for name, value in average.items():
        value.copy_(checkpoint.ema[name])
    checkpoint.chosen = runtime.copy_to_cpu({name: checkpoint.chosen[name] for name in own})


def _own_buffers(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the momentum buffers of an optimizer, by names that say to which parameter they belong."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    states = enumerate(optimizer.state.get(weight, {}) for weight in weights)
    return {_name(index): state["momentum_buffer"] for index, state in states if "momentum_buffer" in state}


def _recorded_buffers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the momentum buffers of a state_dict, which may hold anything. Plain SGD has none, or None."""
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


def _why_unfit(recorded: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """Say why values cannot be copied into the program's own tensors; return an empty text if they can."""
    for name in own:
        if name not in recorded:
            return f"{name} is missing"
        value = recorded[name]
        if reason := why_no_tensor(value):
            return f"{name} is {reason}"
        if value.shape != own[name].shape:
            return f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}"
        if value.dtype != own[name].dtype:
            return f"{name} is {value.dtype}, not {own[name].dtype}"
    further = [name for name in recorded if name not in own]
    return f"{short_repr(further[0])} is no part of it" if further else ""
