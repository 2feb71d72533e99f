"""One buffer for the feature maps of a dense block, and one for their gradients.

A dense layer reads all maps that were made before it, and normalises them first. Here all maps lie side by side in one
tensor of rows: a row is a pixel of an image, its columns are the channels. What a layer reads is a slice of the first
c columns, and nothing is ever concatenated.

Mean and variance of a channel over the batch do not depend on the layer that reads it. So they are computed once, when
the channel is written, and what is written is the normalised map

    xhat = (x - mean) * invstd

The batch norm of a reader is then u = gamma * xhat + beta. That, the ReLU a = relu(u) and a 1x1 convolution act on each
row alone: they work through chunks of rows that stay in the cache, and are cheap to do again in the backward pass.

Backward, with g = dLoss/da where u > 0 and 0 elsewhere, a reader adds gamma * g to the gradient G of xhat, and needs
dbeta = sum(g) and dgamma = sum(g * xhat) for itself. Sums over rows are linear, so that those of G follow from those of
its readers: sum(G) = sum of gamma * dbeta, sum(G * xhat) = sum of gamma * dgamma. The part of the gradient that goes
through mean and variance is applied once for each channel, when all its readers are done, not once for each reader:

    dLoss/dx = invstd * (G - sum(G) / R - xhat * sum(G * xhat) / R)

N images, H x W pixels, R = N * H * W rows, C channels of the whole block, c of them read by a layer.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import Scratch, as_maps, zero_where_relu_was

EPS = 1e-5  # the default of torch.nn.BatchNorm2d, for which readers need no conversion


class Statistics(NamedTuple):
    """Of the channels of a feature buffer over the batch, each (C,), in 32 bits at least.

    Attributes:
        mean: Of x.
        unbiased: Variance of x with the divisor R - 1, as running variances have it.
        invstd: 1 / sqrt(variance + EPS), with the divisor R.
    """

    mean: Tensor
    unbiased: Tensor
    invstd: Tensor


class Affine(NamedTuple):
    """What a norm layer does to xhat of the first c channels: scale * xhat + shift.

    A layer in eval mode, or with another `eps`, normalises to ratio * xhat + offset before gamma and beta act.

    Attributes:
        scale: (c,).
        shift: (c,).
        ratio: (c,), or the number 1.
        offset: (c,), or the number 0.
        of_batch: Whether gradients go through mean and variance.
    """

    scale: Tensor
    shift: Tensor
    ratio: Tensor | float
    offset: Tensor | float
    of_batch: bool

    @classmethod
    def of(
        cls, gamma: Tensor, beta: Tensor, ratio: Tensor | float = 1.0, offset: Tensor | float = 0.0, *, of_batch: bool
    ) -> "Affine":
        """Combine a normalisation with gamma and beta, (c,) each."""
        return cls(gamma * ratio, beta + gamma * offset, ratio, offset, of_batch)


class FeatureBuffer:
    """All feature maps of a dense block, normalised, with the statistics of those that have been written.

    Args:
        maps: What the block starts with, (N, C0, H, W).
        num_features: Channels C that the block ends with.
        dtype: Of the rows.
    """

    def __init__(self, maps: Tensor, num_features: int, dtype: torch.dtype):
        n, _, height, width = maps.shape
        self.shape = (n, height, width)
        self.rows = maps.new_empty(n * height * width, num_features, dtype=dtype)
        of_channels = maps.new_zeros(3, num_features, dtype=torch.promote_types(dtype, torch.float32))
        self.statistics = Statistics(*of_channels)
        self.end = 0
        self.append(maps.to(dtype))

    def append(self, maps: Tensor) -> None:
        """Normalise new maps (N, k, H, W) and write them behind those that are there."""
        new = slice(self.end, self.end + maps.shape[1])
        mean, unbiased, invstd = (values[new] for values in self.statistics)
        # Batch norm's own kernel, as a layer without parameters that forgets all earlier batches. On a CPU its two
        # passes are many times faster than torch.var_mean over the rows.
        one = torch.ones_like(mean)
        xhat, _, new_invstd = torch.native_batch_norm(maps, one, None, mean, unbiased, True, 1.0, EPS)
        invstd.copy_(new_invstd)
        as_maps(self.rows, self.shape)[:, new] = xhat
        self.end = new.stop


def activate(rows: Tensor, affine: Affine, scratch: Scratch) -> Tensor:
    """Norm and ReLU of a chunk (r, c) of the buffer. Forward and backward pass call it alike, so that signs agree."""
    return torch.addcmul(affine.shift, rows, affine.scale, out=scratch.shaped(*rows.shape)).relu_()


class GradientBuffer:
    """Gradients of all maps in a feature buffer.

    Args:
        rows: The feature buffer's rows (R, C).
        statistics: Of its channels.
    """

    def __init__(self, rows: Tensor, statistics: Statistics):
        self.features = rows
        self.invstd = statistics.invstd
        self.rows = torch.empty_like(rows)  # G
        self.sums = torch.zeros_like(self.invstd)  # sum(G)
        self.products = torch.zeros_like(self.invstd)  # sum(G * xhat)
        self.scratch = Scratch(rows, self.invstd.dtype)

    def begin(self, chunk: slice, grad: Tensor, activated: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Like `add`, for the first reader to come: it has read all columns, and there is nothing to add to yet."""
        grad = zero_where_relu_was(grad, activated)
        torch.mul(grad, affine.scale, out=self.rows[chunk])
        return self._shares(chunk, grad)

    def add(self, chunk: slice, grad: Tensor, activated: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Add what a reader of the first c columns has for a chunk of rows.

        Args:
            chunk: Which rows.
            grad: (r, c), of the ReLU's result. It is overwritten.
            activated: (r, c), the ReLU's result.
            affine: The norm before it.

        Returns:
            The chunk's share of sum(g) and of sum(g * xhat), (c,) each.
        """
        grad = zero_where_relu_was(grad, activated)
        self.rows[chunk, : grad.shape[1]].addcmul_(grad, affine.scale)
        return self._shares(chunk, grad)

    def _shares(self, chunk: slice, grad: Tensor) -> tuple[Tensor, Tensor]:
        xhat = self.features[chunk, : grad.shape[1]]
        product = torch.mul(grad, xhat, out=self.scratch.shaped(*grad.shape))
        return grad.sum(0, dtype=self.sums.dtype), product.sum(0)

    def close(self, affine: Affine, shares: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Add up the shares of all chunks of a reader, and note what acts through mean and variance.

        Args:
            affine: The reader's norm.
            shares: Those that `add` returns, followed by that of the gradient of a weight if there is one.

        Returns:
            dgamma, dbeta, and the gradient of the weight.
        """
        total, product, *of_weight = _sums(shares, self.sums.dtype)
        if affine.of_batch:
            columns = slice(len(total))
            self.sums[columns] += affine.scale * total
            self.products[columns] += affine.scale * affine.ratio**2 * product
        return affine.ratio * product + affine.offset * total, total, *of_weight

    def take(self, columns: slice) -> Tensor:
        """dLoss/dx (R, k) of some columns, when all their readers are done."""
        per_row = -1 / len(self.rows)
        grad = self.features[:, columns] * (self.products[columns] * per_row)
        grad.add_(self.sums[columns] * per_row).add_(self.rows[:, columns]).mul_(self.invstd[columns])
        return grad.to(self.rows.dtype)


def _sums(shares: Iterable[tuple[Tensor, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Add up tuples of tensors."""
    totals: list[Tensor] = []
    for share in shares:
        for total, tensor in zip(totals, share, strict=False):
            total.add_(tensor)
        if not totals:
            totals = [tensor.to(dtype, copy=True) for tensor in share]
    return totals
