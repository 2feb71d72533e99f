"""Everything that steps leave behind, from the run into a checkpoint and back, once all of it is known to fit.

Only values are taken from a checkpoint. They are copied into the program's own tensors, so that nothing depends on the
memory layout of those in the file. The optimizer keeps the settings of the flags.
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
from train.run.unfinished_epoch import ProcessState
from train.step import Stepper


def collect(checkpoint: Checkpoint, network: nn.Module, stepper: Stepper) -> None:
    """Put the state of network, optimizer, scaler and average after the last step into a checkpoint.

    Inside an epoch, this and `processes_inside_epoch` are everything that a step leaves for the next one.
    """
    checkpoint.network = network.state_dict()
    checkpoint.optimizer = stepper.optimizer.state_dict()
    checkpoint.scaler = stepper.scaler.state_dict()
    checkpoint.ema = stepper.average.state_dict() if stepper.average else {}


def processes_inside_epoch(network: nn.Module, stepper: Stepper) -> list[ProcessState]:
    """Return what the steps of an epoch have left in each process; an empty list except in the main process."""
    tensors = runtime.copy_to_cpu(_tensors_of_process(network, stepper))
    return stepper.processes.gather(ProcessState(tensors, runtime.random_states(stepper.processes)))


def is_finite(network: nn.Module, stepper: Stepper) -> bool:
    """Wait for the device, and return whether all that steps have left is finite, in all processes."""
    averages = stepper.average.state_dict() if stepper.average else {}
    values = [*network.state_dict().values(), *_own_buffers(stepper.optimizer).values(), *averages.values()]
    is_bad = not torch.stack([value.isfinite().all() for value in values]).all()
    return not any(stepper.processes.all_reduce_max(int(is_bad)))


@torch.no_grad()
def restore(network: nn.Module, stepper: Stepper, checkpoint: Checkpoint, folder: Path) -> None:
    """Restore a network and its training state from a checkpoint, either completely or not at all.

    Random numbers inside an epoch are left to `runtime.set_random_states`. The chosen weights in the checkpoint are
    brought into the program's own order and memory format.

    Args:
        network: The network of the run.
        stepper: Trains the network. Its optimizer has its momentum buffers already, and its average all tensors.
        checkpoint: A checkpoint that is not empty.
        folder: The folder of the run, for messages.

    Raises:
        UserError: If the checkpoint is of another network or optimizer, or holds values that are NaN or infinite.
    """
    whose = f"the checkpoint in {folder} is of another"
    own, unfinished = network.state_dict(), checkpoint.unfinished
    weights = [checkpoint.network, *([checkpoint.chosen] if checkpoint.rows else [])]
    for part in weights:
        if reason := _why_unfit(part, own):
            raise UserError(f"{whose} network than its {CONFIG} says: {reason}")
    buffers = _own_buffers(stepper.optimizer)
    recorded = _recorded_buffers(checkpoint.optimizer)
    if reason := _why_unfit(recorded, buffers):
        raise UserError(f"{whose} optimizer: its buffers are not those of momentum: {reason}")
    average = stepper.average.state_dict() if stepper.average else {}
    if reason := _why_unfit(checkpoint.ema, average):
        raise UserError(f"{whose} average of the weights: {reason}")
    of_process = _tensors_of_process(network, stepper)
    of_processes = [process.tensors for process in unfinished.processes] if unfinished else []
    for part in of_processes:
        if reason := _why_unfit(part, of_process):
            raise UserError(f"the checkpoint in {folder} cannot be used inside its epoch: {reason}")
    for part in (*weights, recorded, checkpoint.ema, *of_processes):
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
    if checkpoint.rows:
        checkpoint.chosen = runtime.copy_to_cpu({name: checkpoint.chosen[name] for name in own})
    if unfinished:
        stepper.begin_epoch(num_steps=unfinished.num_steps, num_images=unfinished.num_images)
        mine = unfinished.of(stepper.processes).tensors
        for name, tensor in of_process.items():
            tensor.copy_(mine[name])


def _tensors_of_process(network: nn.Module, stepper: Stepper) -> dict[str, Tensor]:
    """Return the tensors that steps of an epoch change in each process on its own: running statistics and sums."""
    averages = stepper.average.buffers() if stepper.average else {}
    of_average = {f"average of {name}": average for name, average in averages.items()}
    return {**dict(network.named_buffers()), **of_average, **stepper.epoch_tensors()}


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
