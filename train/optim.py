"""The paper's optimizer, and the learning rate of each epoch."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

MILESTONES = (0.5, 0.75)  # of the paper
FACTOR = 0.1


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, wd: float, decay_norms: bool = True
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum, no dampening, and weight decay.

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
        decay_norms: Let all parameters decay, as in the paper. False leaves out the weights of norm layers and all
            biases, which are the parameters of one dimension.
    """
    weights = list(parameters)
    groups: list[dict[str, Any]] = [{"params": weights}]
    if not decay_norms:
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1]},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=wd, fused=True)
    device = weights[0].device
    if device.type != "cpu":
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(lr, device=device)
    if momentum:
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def learning_rate(
    epoch: int,
    *,
    n_epochs: int,
    lr: float,
    schedule: str = "step",
    warmup_epochs: int = 0,
    milestones: Sequence[float] = MILESTONES,
    factor: float = FACTOR,
) -> float:
    """Return the learning rate of an epoch.

    It grows in equal steps over the warm-up epochs; the first epoch after them is one step above the last of them. Then
    it depends on the schedule:

    * "step": `lr`, multiplied by `factor` at each milestone. With the defaults, those of the paper, it is a tenth after
      half of all epochs, and a hundredth after three quarters. A milestone is reached with the first epoch that has at
      least that fraction of all epochs before it. Exact fractions are compared, so that none is lost where it falls
      between two epochs. Milestones during the warm-up count too.
    * "cosine": `lr` in the first epoch after the warm-up, and then along half a cosine that would reach 0 one epoch
      after the last.

    Args:
        epoch: The epoch, from 1 to n_epochs.
        n_epochs: Epochs of the whole run.
        lr: Initial learning rate.
        schedule: "step" or "cosine".
        warmup_epochs: From 0 to n_epochs - 1.
        milestones: Fractions of all epochs, above 0 and below 1, in any order. Each means the decimal number that
            Python prints for it.
        factor: Above 0. A factor of 0.1 divides by exactly 10.

    References:
        Loshchilov and Hutter, SGDR, 2017 (arXiv:1608.03983), for the cosine, without restarts.
        Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv:1706.02677), for the warm-up.
    """
    done = epoch - 1
    warmth = min(1, epoch / (warmup_epochs + 1))
    if schedule == "cosine":
        progress = max(0, done - warmup_epochs) / (n_epochs - warmup_epochs)
        return lr * warmth * (1 + math.cos(math.pi * progress)) / 2
    drops = sum(done >= Fraction(str(milestone)) * n_epochs for milestone in milestones)
    return lr * warmth / math.prod([1 / factor] * drops)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use one learning rate for all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
