"""Batch norm layers taken apart: what they normalise with, and how their running statistics move."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .feature_buffer import EPS, Affine, Statistics


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

    def affine(self, gamma: Tensor, beta: Tensor, statistics: Statistics, num_values: int) -> Affine:
        """Combine parameters (c,) with the statistics (C,) of a feature buffer over `num_values` rows, C >= c."""
        mean, unbiased, invstd = (values[: len(gamma)] for values in statistics)
        gamma, beta = gamma.to(mean.dtype), beta.to(mean.dtype)
        if self.running:
            running_mean, running_variance = (values.to(mean.dtype) for values in self.running)
            running_invstd = (running_variance + self.eps).rsqrt()
            offset = (mean - running_mean) * running_invstd
            return Affine.of(gamma, beta, running_invstd / invstd, offset, of_batch=False)
        if self.eps != EPS:
            variance = unbiased * ((num_values - 1) / num_values)
            return Affine.of(gamma, beta, (variance + self.eps).rsqrt() / invstd, of_batch=True)
        return Affine.of(gamma, beta, of_batch=True)

    def normalise(
        self, maps: Tensor, gamma: Tensor, beta: Tensor, *, update: nn.BatchNorm2d | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise maps (N, b, H, W).

        Args:
            maps: In any memory format.
            gamma: (b,).
            beta: (b,).
            update: The layer whose running statistics take part in the step; None for a second computation of it.

        Returns:
            The normalised maps, and the two tensors that `normalise_backward` wants back.
        """
        mean, variance = self.running or (None, None)
        factor = 0.0
        if update is not None and _has_moving_statistics(update):
            mean, variance, factor = update.running_mean, update.running_var, _count_step(update)
        return torch.native_batch_norm(maps, gamma, beta, mean, variance, not self.running, factor, self.eps)

    def normalise_backward(self, grad: Tensor, maps: Tensor, gamma: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        """Gradients with respect to maps, gamma and beta, from that of the normalised maps."""
        mean, variance = self.running or (None, None)
        of_batch, wanted = not self.running, [True, True, True]
        return torch.ops.aten.native_batch_norm_backward.default(
            grad, maps, gamma, mean, variance, *batch, of_batch, self.eps, wanted
        )


def update_running_statistics(norm: nn.BatchNorm2d, statistics: Statistics) -> None:
    """Move running mean and variance (c,) of a layer towards those of the batch, (C,) with C >= c.

    As in `torch.nn.BatchNorm2d`: nothing happens unless the layer is in training mode and has running statistics. They
    are changed in place, because replicas of `nn.DataParallel` share them with the network.
    """
    if _has_moving_statistics(norm):
        factor = _count_step(norm)
        for running, new in ((norm.running_mean, statistics.mean), (norm.running_var, statistics.unbiased)):
            running.lerp_(new[: norm.num_features].to(running.dtype), factor)


def _has_moving_statistics(norm: nn.BatchNorm2d) -> bool:
    return norm.training and norm.track_running_stats and norm.running_mean is not None


def _count_step(norm: nn.BatchNorm2d) -> float:
    """Count a training step and return the weight of its statistics in the running ones.

    With `momentum=None` these are averages over all steps. Their number is read from the device, as PyTorch does.
    """
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0
