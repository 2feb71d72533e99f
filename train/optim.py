"""The paper's optimizer, and the learning rate of each epoch."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def make_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, wd: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum, no dampening, and weight decay on all parameters.

    The fused implementation obeys `optimizer.found_inf`, a number on the device: it skips a step where that is 1, and
    nobody has to wait for the device.

    Momentum buffers exist from the beginning. They hold zeros, with which the first step is that of an optimizer that
    has none yet. The fused implementation would allocate them in the first step and leave them uninitialised if that
    step is skipped, as it often is in fp16.

    On a GPU the learning rate is a number on the device, so that a CUDA graph reads the current one.

    Args:
        parameters: The parameters of the network, all on one device.
        lr: Learning rate.
        momentum: From 0, which is plain SGD, to 1.
        wd: Weight decay.
    """
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=wd, fused=True
    )
    (group,) = optimizer.param_groups
    device = group["params"][0].device
    if device.type != "cpu":
        group["lr"] = torch.tensor(lr, device=device)
    if momentum:
        for weight in group["params"]:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def learning_rate(epoch: int, *, n_epochs: int, lr: float, schedule: str = "step", warmup_epochs: int = 0) -> float:
    """Return the learning rate of an epoch.

    It grows in equal steps over the warm-up epochs; the first epoch after them is one step above the last of them. Then
    it depends on the schedule:

    * "step": `lr`, a tenth of it after half of all epochs, a hundredth after three quarters, as in the paper. Whole
      numbers are compared, so that no drop is lost where `n_epochs` is not a multiple of 4: a drop comes with the first
      epoch that has at least half, or three quarters, of all epochs before it. Drops during the warm-up count too.
    * "cosine": `lr` in the first epoch after the warm-up, and then along half a cosine that would reach 0 one epoch
      after the last.

    Args:
        epoch: The epoch, from 1 to n_epochs.
        n_epochs: Epochs of the whole run.
        lr: Initial learning rate.
        schedule: "step" or "cosine".
        warmup_epochs: From 0 to n_epochs - 1.

    References:
        Loshchilov and Hutter, SGDR, 2017 (arXiv:1608.03983), for the cosine, without restarts.
        Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv:1706.02677), for the warm-up.
    """
    done = epoch - 1
    warmth = min(1, epoch / (warmup_epochs + 1))
    if schedule == "cosine":
        progress = max(0, done - warmup_epochs) / (n_epochs - warmup_epochs)
        return lr * warmth * (1 + math.cos(math.pi * progress)) / 2
    drops = (2 * done >= n_epochs) + (4 * done >= 3 * n_epochs)
    return lr * warmth / 10**drops


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use one learning rate for all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
