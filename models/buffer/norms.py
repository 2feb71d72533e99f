"""Batch norm layers taken apart: what they normalise with, and how their running statistics move."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .affine import Affine, NormGradient
from .feature_buffer import EPS, Reading, Statistics
from .reductions import Moments, sums_of_products


@dataclass(frozen=True)
class Norm:
    """How a norm layer normalised in the forward pass.

    Attributes:
        eps: Added to the variance.
        running: Running mean and variance if it used those; empty if it used the statistics of the batch.
    """

    eps: float
    running: tuple[Tensor, ...]

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "Norm":
        """Note how a layer normalises now."""
        of_batch = module.training or module.running_mean is None
        return cls(module.eps, () if of_batch else (module.running_mean, module.running_var))

    def with_running(self, running: tuple[Tensor, ...]) -> "Norm":
        """The same with these tensors in place of its own."""
        return Norm(self.eps, running)

    def reading(self, gamma: Tensor, beta: Tensor, statistics: Statistics, num_values: int) -> Reading:
        """Combine parameters (c,) with the statistics (C,) of a feature buffer over `num_values` rows, C >= c."""
        gamma, beta = gamma.to(statistics.mean.dtype), beta.to(statistics.mean.dtype)
        if not self.running and self.eps == EPS:
            return Reading(Affine(gamma, beta))
        mean, unbiased, invstd = (values[: len(gamma)] for values in statistics)
        if not self.running:
            variance = unbiased * ((num_values - 1) / num_values)
            ratio = (variance + self.eps).rsqrt() / invstd
            return Reading(Affine(gamma * ratio, beta), ratio)
        running_mean, running_variance = (values.to(mean.dtype) for values in self.running)
        running_invstd = (running_variance + self.eps).rsqrt()
        ratio, offset = running_invstd / invstd, (mean - running_mean) * running_invstd
        return Reading(Affine(gamma * ratio, beta + gamma * offset), ratio, offset)

    def normalisation(self, rows: Tensor, module: nn.BatchNorm2d, running: "RunningStatistics") -> "Normalisation":
        """Find what the layer, `module`, normalises raw rows (R, b) with; note it if running statistics move to it."""
        if self.running:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            mean, variance = (values.to(dtype, copy=True) for values in self.running)
        else:
            mean, variance, unbiased = Moments.of(rows)
            running.note(module, mean, unbiased)
        return Normalisation(mean, (variance + self.eps).rsqrt(), not self.running)


class Normalisation(NamedTuple):
    """What the only reader of raw maps z normalises them with: zhat = (z - mean) * invstd.

    The gradient, with g = dLoss/da where its ReLU lets u = gamma * zhat + beta through and 0 elsewhere, is

        dLoss/dz = gamma * invstd * (g - sum(g) / R - zhat * sum(g * zhat) / R)

    or its first term alone if mean and invstd are not those of the batch.

    Attributes:
        mean: (b,).
        invstd: (b,).
        of_batch: Whether gradients go through both.
    """

    mean: Tensor
    invstd: Tensor
    of_batch: bool

    def affine(self, gamma: Tensor, beta: Tensor) -> Affine:
        """Combine it with gamma and beta (b,), for raw rows."""
        scale = gamma.to(self.mean.dtype) * self.invstd
        return Affine(scale, torch.addcmul(beta.to(self.mean.dtype), scale, self.mean, value=-1))

    def shares(self, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of a chunk of g and z, (r, b) each without gaps: sum(g) = dbeta, and sum(g * zhat) = dgamma."""
        return sums_of_products(grad, rows, self.mean, self.invstd)

    def gradient(self, gamma: Tensor, total: Tensor, product: Tensor, num_rows: int) -> NormGradient:
        """Combine it with gamma (b,) and the sums over all rows of what `shares` returns."""
        scale = gamma.to(self.mean.dtype) * self.invstd
        if not self.of_batch:
            return NormGradient(scale, torch.zeros_like(scale), torch.zeros_like(scale))
        per_row = scale / -num_rows
        slope = per_row * self.invstd * product
        return NormGradient(scale, slope, torch.addcmul(per_row * total, slope, self.mean, value=-1))


class RunningStatistics:
    """Running statistics of norm layers that move together, which takes a few operations and not a few for each layer.

    As in `torch.nn.BatchNorm2d`, those move that are in training mode and have running statistics. They are changed in
    place, because replicas of `nn.DataParallel` share them with the network.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []

    def note(self, norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
        """Note that those of a layer, (c,) each, move towards those of the batch, (C,) with C >= c."""
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            self._noted.append((norm, mean[: norm.num_features], unbiased[: norm.num_features]))

    def move(self) -> None:
        """Count a step of each layer, and move all."""
        counts = [norm.num_batches_tracked for norm, *_ in self._noted if norm.num_batches_tracked is not None]
        if counts:
            torch._foreach_add_(counts, 1)
        by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for norm, mean, unbiased in self._noted:
            running, new = by_factor.setdefault(_weight_of_a_step(norm), ([], []))
            running += norm.running_mean, norm.running_var
            new += mean.to(norm.running_mean.dtype), unbiased.to(norm.running_var.dtype)
        for factor, (running, new) in by_factor.items():
            torch._foreach_lerp_(running, new, factor)


def _weight_of_a_step(norm: nn.BatchNorm2d) -> float:
    """Weight of the last step in the running statistics.

    With `momentum=None` these are averages over all steps. Their number is read from the device, as PyTorch does.
    """
    if norm.momentum is None and norm.num_batches_tracked is not None:
        return 1 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0
