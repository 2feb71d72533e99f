"""Batch norm taken apart: parameters, statistics, gradients, and the update of running statistics.

Everything here is about vectors with one number for each channel; `operations` applies them to rows.

R rows, C channels of a feature buffer, c of them read by a layer, b channels of a bottleneck.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .operations import Affine, NormGradient, moments, sums_of_products

EPS = 1e-5  # the default of torch.nn.BatchNorm2d, for which layers that read a buffer need no conversion


class Statistics(NamedTuple):
    """Statistics of the channels of a feature buffer over the batch, (C,) each, in at least 32 bits.

    Attributes:
        mean: The mean of x.
        unbiased: The variance of x with divisor R - 1, as in running variances.
        invstd: 1 / sqrt(variance + EPS), with divisor R.
    """

    mean: Tensor
    unbiased: Tensor
    invstd: Tensor


class Norm(NamedTuple):
    """Parameters and settings of a norm layer, as they are in the forward pass.

    Attributes:
        weight: gamma (c,).
        bias: beta (c,).
        eps: Added to the variance.
        running: Running mean and variance if the layer normalises with them; None if it uses those of the batch.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    running: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "Norm":
        """Take parameters and settings from a layer."""
        running = None
        if not module.training and module.running_mean is not None and module.running_var is not None:
            running = module.running_mean, module.running_var
        return cls(module.weight, module.bias, module.eps, running)

    def over_buffer(self, statistics: Statistics, num_rows: int) -> "BufferNorm":
        """Combine the layer with the statistics (C,) of a feature buffer with `num_rows` rows, C >= c."""
        gamma, beta = self.weight.to(statistics.mean.dtype), self.bias.to(statistics.mean.dtype)
        if self.running is None and self.eps == EPS:
            return BufferNorm(Affine(gamma, beta))
        mean, unbiased, invstd = (values[: len(gamma)] for values in statistics)
        if self.running is None:
            variance = unbiased * ((num_rows - 1) / num_rows)
            ratio = (variance + self.eps).rsqrt() / invstd
            return BufferNorm(Affine(gamma * ratio, beta), ratio)
        running_mean, running_variance = (values.to(mean.dtype) for values in self.running)
        running_invstd = (running_variance + self.eps).rsqrt()
        ratio, offset = running_invstd / invstd, (mean - running_mean) * running_invstd
        return BufferNorm(Affine(gamma * ratio, beta + gamma * offset), ratio, offset)


class BufferNorm(NamedTuple):
    """A norm layer applied to xhat, the normalised channels of a feature buffer.

    With another `eps` than that of the buffer, the layer normalises to ratio * xhat; in eval mode, to
    ratio * xhat + offset. Then gamma and beta act.

    Attributes:
        affine: The layer as a whole, as a function of xhat.
        ratio: (c,), or None for 1.
        offset: (c,); None if the layer uses the statistics of the batch, so that gradients go through these.
    """

    affine: Affine
    ratio: Tensor | None = None
    offset: Tensor | None = None

    def grad_weight(self, total: Tensor, product: Tensor) -> Tensor:
        """Compute the gradient of gamma from sum(g) and sum(g * xhat)."""
        if self.ratio is None:
            return product
        return self.ratio * product if self.offset is None else self.ratio * product + self.offset * total


class BottleneckNorm(NamedTuple):
    """A norm layer applied to a bottleneck z, which is stored as it is: zhat = (z - mean) * invstd.

    The gradient, with g = dLoss/da where u = gamma * zhat + beta is positive and 0 elsewhere, is

        dLoss/dz = gamma * invstd * (g - sum(g) / R - zhat * sum(g * zhat) / R)

    or only its first term if mean and invstd are not those of the batch.

    Attributes:
        norm: The layer.
        mean: (b,).
        invstd: (b,).
    """

    norm: Norm
    mean: Tensor
    invstd: Tensor

    @classmethod
    def of(cls, module: nn.BatchNorm2d, rows: Tensor, running: "RunningStatistics") -> "BottleneckNorm":
        """Find out how a layer normalises z, rows (R, b); if it uses their statistics, note them for its running ones.

        Args:
            module: The layer.
            rows: z.
            running: Notes the statistics.
        """
        norm = Norm.of(module)
        if norm.running is None:
            mean, variance, unbiased = moments(rows)
            running.note(module, mean, unbiased)
        else:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            mean, variance = (values.to(dtype, copy=True) for values in norm.running)
        return cls(norm, mean, (variance + norm.eps).rsqrt())

    @property
    def affine(self) -> Affine:
        """The layer as a whole, as a function of z."""
        scale = self._scale()
        return Affine(scale, torch.addcmul(self.norm.bias.to(self.mean.dtype), scale, self.mean, value=-1))

    def sums(self, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sum a chunk of g and z, (r, b) each and contiguous: sum(g), for beta, and sum(g * zhat), for gamma."""
        return sums_of_products(grad, rows, self.mean, self.invstd)

    def gradient(self, total: Tensor, product: Tensor, num_rows: int) -> NormGradient:
        """Compute dLoss/dz as a function of g and z, from sum(g) and sum(g * zhat) over all R = `num_rows` rows."""
        scale = self._scale()
        if self.norm.running is not None:
            return NormGradient(scale, torch.zeros_like(scale), torch.zeros_like(scale))
        per_row = scale / -num_rows
        slope = per_row * self.invstd * product
        return NormGradient(scale, slope, torch.addcmul(per_row * total, slope, self.mean, value=-1))

    def _scale(self) -> Tensor:
        return self.norm.weight.to(self.mean.dtype) * self.invstd


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
            all_running, all_new = by_momentum.setdefault(_momentum(module), ([], []))
            all_running += running
            all_new += [values.to(old.dtype) for old, values in zip(running, new, strict=True)]
        for momentum, (all_running, all_new) in by_momentum.items():
            torch._foreach_lerp_(all_running, all_new, momentum)


def _momentum(module: nn.BatchNorm2d) -> float:
    """Return the weight of the current step in the running statistics.

    With `momentum=None`, these are averages over all steps, whose number is read from the device, as in PyTorch.
    """
    if module.momentum is None and module.num_batches_tracked is not None:
        return 1 / float(module.num_batches_tracked)
    return module.momentum or 0.0
