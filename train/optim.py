"""The paper's optimizer and its learning rate."""

from collections.abc import Iterable

import torch
from torch import nn


def make_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum, no dampening, and weight decay on all parameters.

    The fused form obeys `optimizer.found_inf`, a number on the device: a step is skipped where it is 1, and nobody
    has to wait for the device to know. With `momentum` 0 it is plain SGD.
    """
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=wd, fused=True)


def learning_rate(epoch: int, *, n_epochs: int, lr: float) -> float:
    """The learning rate of an epoch: `lr`, a tenth of it after half of the epochs, a hundredth after three quarters.

    Whole numbers are compared, so that no drop is lost where `n_epochs` is no multiple of 4: a drop comes with the
    first epoch before which half, or three quarters, of all epochs are done.

    Args:
        epoch: From 1 to n_epochs.
        n_epochs: Epochs of the whole run.
        lr: The initial learning rate.
    """
    done = epoch - 1
    drops = (2 * done >= n_epochs) + (4 * done >= 3 * n_epochs)
    return lr / 10**drops


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use one learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
