"""Flags of training that are fine alone and not together."""

from collections.abc import Mapping
from typing import Any

from commands.requirements import require_compiler
from commands.train.tensorboard import require_tensorboard
from train.errors import UserError

BUFFERS = (True, "buffer", "buffer_fast")  # of --efficient


def check_training(flags: Mapping[str, Any], *, num_processes: int, is_launched: bool) -> None:
    """Make sure that the flags of a training run go together.

    Args:
        flags: All of them.
        num_processes: Of the run.
        is_launched: Whether torchrun has started them.

    Raises:
        UserError: If they do not; the message names flags, values and what is allowed.
    """
    n_epochs, warmup_epochs = flags["n_epochs"], flags["warmup_epochs"]
    if warmup_epochs >= n_epochs:
        raise UserError(f"--warmup_epochs is {warmup_epochs}, but must be below --n_epochs, which is {n_epochs}")
    batch_size, accum_steps = flags["batch_size"], flags["accum_steps"]
    if accum_steps * num_processes > batch_size:
        where = f" in each of {num_processes} processes" if num_processes > 1 else ""
        raise UserError(
            f"--batch_size is {batch_size}, but must be {accum_steps * num_processes} or more: "
            f"an image for each part of --accum_steps {accum_steps}{where}"
        )
    for flag in ("compile", "sync_bn"):
        if flags[flag] and flags["efficient"] in BUFFERS:
            raise UserError(
                f"--{flag} True does not work with --efficient {flags['efficient']}, only with naive and checkpoint"
            )
    if flags["compile"]:
        require_compiler()
    if flags["sync_bn"] and not is_launched:
        raise UserError(
            "--sync_bn True works between processes on GPUs: put torchrun --nproc_per_node=N before demo.py"
        )
    require_tensorboard(flags["tensorboard"])


def check_last_batch(flags: Mapping[str, Any], *, num_images: int, num_processes: int) -> None:
    """Make sure that processes with nothing to do in the last batch of an epoch are not waited for.

    Raises:
        UserError: If norm layers would wait for them.
    """
    parts, rest = flags["accum_steps"] * num_processes, num_images % flags["batch_size"]
    if flags["sync_bn"] and 0 < rest < parts:
        raise UserError(
            f"--sync_bn True needs an image in each part of a batch, but the last batch has {rest} for {parts} parts; "
            "choose another --batch_size"
        )
