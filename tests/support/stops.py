"""Signals that come to a run in the middle of a chosen step, and scales of fp16 that change every few steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from train import runtime
from train.step import Stepper

SCALE = {"init_scale": 2.0**20, "growth_interval": 3}  # overflows, and grows until it overflows again


@contextmanager
def signal_in_step(number: int, at: int) -> Iterator[None]:
    """Let a signal come to this process while it takes a step.

    Args:
        number: The signal.
        at: The step, counted from 1 within this context. None of them: 0.
    """
    take, taken = Stepper.take, 0

    def take_signalled(self, *batch):
        nonlocal taken
        taken += 1
        if taken == at:
            signal.raise_signal(number)
        take(self, *batch)

    with mock.patch.object(Stepper, "take", take_signalled):
        yield


def restless_scale():
    """Let the scale of the loss in fp16 grow after every third step, so that it overflows again and again."""

    def make_scaler(precision, device):
        return torch.amp.GradScaler(device.type, enabled=precision == "fp16", **SCALE)

    return mock.patch.object(runtime, "make_scaler", make_scaler)
