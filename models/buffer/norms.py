"""Batch norm taken apart: statistics of a batch, norm layers as functions of raw feature maps, running statistics.

Everything here is about vectors with one number for each channel; `norm_relu` applies them to rows.

R rows, C channels of a feature buffer, c of them read by a layer, b channels of a bottleneck.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

EPS = 1e-5  # the default of torch.nn.BatchNorm2d; layers with it share their inverse standard deviations


class Statistics(NamedTuple):
    """Statistics of each column of rows over the batch, (C,) each, in at least 32 bits.

    Attributes:
        mean: The mean.
        unbiased: The variance with divisor R - 1, as in running variances.
        invstd: 1 / sqrt(variance + eps), with divisor R and the eps of whoever asked for them.
    """

    mean: Tensor
    unbiased: Tensor
    invstd: Tensor

    def of(self, columns: slice) -> "Statistics":
        """Return the statistics of some columns."""
        return Statistics(*(values[columns] for values in self))


class NormVectors(NamedTuple):
    """All that a kernel needs to apply a norm layer, (c,) each; see `ChannelNorm`."""

    mean: Tensor
    invstd: Tensor
    weight: Tensor
    bias: Tensor


class ChannelNorm(NamedTuple):
    """A norm layer as a function of feature maps x: gamma * (x - mean) * invstd + beta.

    Attributes:
        mean: Mean of each channel (c,), of the batch or a running one.
        invstd: 1 / sqrt(variance + eps), (c,).
        weight: gamma (c,).
        bias: beta (c,).
        running: Running mean and variance if the layer normalises with them, so that autograd notices it when they
            change before the backward pass. No gradient goes through them. None if it uses those of the batch.
    """

    mean: Tensor
    invstd: Tensor
    weight: Tensor
    bias: Tensor
    running: tuple[Tensor, Tensor] | None = None

    @property
    def vectors(self) -> NormVectors:
        """Mean, invstd, weight and bias."""
        return NormVectors(*self[:4])

    @property
    def is_frozen(self) -> bool:
        """Whether mean and variance are running ones."""
        return self.running is not None

    @classmethod
    def over_buffer(cls, module: nn.BatchNorm2d, statistics: Statistics, num_rows: int) -> "ChannelNorm":
        """Combine a layer with the statistics (C,) of a feature buffer with `num_rows` rows and EPS, C >= c."""
        mean, unbiased, invstd = statistics.of(slice(module.num_features))
        if module.eps != EPS:
            invstd = (unbiased * ((num_rows - 1) / num_rows) + module.eps).rsqrt()
        return cls._of(module, mean, invstd)

    @classmethod
    def over_rows(cls, module: nn.BatchNorm2d, statistics: Statistics) -> "ChannelNorm":
        """Combine a layer with the statistics of the rows that it alone reads, computed with its eps."""
        return cls._of(module, statistics.mean, statistics.invstd)

    @classmethod
    def _of(cls, module: nn.BatchNorm2d, mean: Tensor, invstd: Tensor) -> "ChannelNorm":
        running = None
        if not module.training and module.running_mean is not None and module.running_var is not None:
            running = module.running_mean, module.running_var
            mean, invstd = running[0].to(mean.dtype), (running[1].to(mean.dtype) + module.eps).rsqrt()
        return cls(mean, invstd, module.weight.to(mean.dtype), module.bias.to(mean.dtype), running)


class RunningStatistics:
    """Updates the running statistics of many norm layers with a few operations, instead of a few for each layer.

    As in `torch.nn.BatchNorm2d`, only layers in training mode that track statistics are updated. The tensors are
    changed in place, because replicas of `nn.DataParallel` share them with the network.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[nn.BatchNorm2d, list[Tensor], list[Tensor]]] = []

    def note(self, module: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
        """Note the statistics of the batch for a layer with c channels; `update` uses the first c of each (C,)."""
        running_mean, running_var = module.running_mean, module.running_var
        if module.training and module.track_running_stats and running_mean is not None and running_var is not None:
            new = [values[: module.num_features] for values in (mean, unbiased)]
            self._noted.append((module, [running_mean, running_var], new))

    def update(self) -> None:
        """Count a step in every layer that was noted, and update its running statistics."""
        counts = [module.num_batches_tracked for module, *_ in self._noted if module.num_batches_tracked is not None]
        if counts:
            torch._foreach_add_(counts, 1)
        by_momentum: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for module, running, new in self._noted:
            new = [values.to(old.dtype) for old, values in zip(running, new, strict=True)]
            if module.momentum is None and module.num_batches_tracked is not None:
                # An average over all steps. Their number stays on its device: nothing waits for it.
                for old, values in zip(running, new, strict=True):
                    old.lerp_(values, module.num_batches_tracked.to(old.dtype).reciprocal())
                continue
            all_running, all_new = by_momentum.setdefault(module.momentum or 0.0, ([], []))
            all_running += running
            all_new += new
        for momentum, (all_running, all_new) in by_momentum.items():
            torch._foreach_lerp_(all_running, all_new, momentum)
