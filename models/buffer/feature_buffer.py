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

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .affine import Affine, NormGradient
from .reductions import Moments, sums_of_products, totals
from .rows import Scratch, as_rows

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


class Reading(NamedTuple):
    """How a norm layer reads a feature buffer.

    A layer in eval mode normalises to ratio * xhat + offset before gamma and beta act, one with another `eps` to
    ratio * xhat.

    Attributes:
        affine: All that it does to xhat.
        ratio: (c,), or None for 1.
        offset: (c,); None if the layer uses the statistics of the batch, through which gradients go.
    """

    affine: Affine
    ratio: Tensor | None = None
    offset: Tensor | None = None

    def grad_gamma(self, total: Tensor, product: Tensor) -> Tensor:
        """Gradient of gamma from sum(g) and sum(g * xhat)."""
        if self.ratio is None:
            return product
        return self.ratio * product if self.offset is None else self.ratio * product + self.offset * total


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
        self.num_rows = n * height * width
        self.rows = maps.new_empty(self.num_rows, num_features, dtype=dtype)
        of_channels = maps.new_zeros(3, num_features, dtype=torch.promote_types(dtype, torch.float32))
        self.statistics = Statistics(*of_channels)
        self.end = 0
        self.append(as_rows(maps.to(dtype)))

    def append(self, rows: Tensor) -> None:
        """Normalise new maps, as rows (R, k), and write them after those that are there."""
        new = slice(self.end, self.end + rows.shape[1])
        mean, unbiased, invstd = (values[new] for values in self.statistics)
        moments = Moments.of(rows)
        mean.copy_(moments.mean)
        unbiased.copy_(moments.unbiased)
        torch.rsqrt(moments.variance + EPS, out=invstd)
        # The difference first: where the mean is far above the deviation, a product with it would round them away.
        torch.mul(rows - mean, invstd, out=self.rows[:, new])
        self.end = new.stop


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

    def begin(self, chunk: slice, grad: Tensor, xhat: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Like `add`, for the first reader to come: it has read all columns, and there is nothing to add to yet."""
        torch.mul(grad, affine.scale, out=self.rows[chunk])
        return sums_of_products(grad, xhat)

    def add(self, chunk: slice, grad: Tensor, xhat: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Add what a reader of the first c columns has for a chunk of rows.

        Args:
            chunk: Which rows.
            grad: g (r, c).
            xhat: (r, c), without gaps.
            affine: The reader's norm.

        Returns:
            The chunk's share of sum(g) and of sum(g * xhat), (c,) each.
        """
        self.rows[chunk, : grad.shape[1]].addcmul_(grad, affine.scale)
        return sums_of_products(grad, xhat)

    def close(self, reading: Reading, shares: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Add up the shares of all chunks of a reader, and note what acts through mean and variance.

        Args:
            reading: The reader's.
            shares: Those that `add` returns, followed by that of the gradient of a weight if there is one.

        Returns:
            dgamma, dbeta, and the gradient of the weight.
        """
        total, product, *of_weight = totals(shares, self.sums.dtype)
        if reading.offset is None:
            scale, columns = reading.affine.scale, slice(total.shape[0])
            self.sums[columns].addcmul_(scale, total)
            self.products[columns].addcmul_(scale if reading.ratio is None else scale * reading.ratio**2, product)
        return reading.grad_gamma(total, product), total, *of_weight

    def take(self, columns: slice) -> Callable[[slice], Tensor]:
        """Give out dLoss/dx (r, k) of some columns when all their readers are done, a chunk of rows at each call.

        A chunk shares its memory with those that were given out before.
        """
        invstd = self.invstd[columns]
        per_row = invstd / -self.rows.shape[0]
        gradient = NormGradient(invstd, per_row * self.products[columns], per_row * self.sums[columns])
        scratch = Scratch(self.rows, self.rows.dtype)
        return lambda chunk: gradient.of(self.rows[chunk, columns], self.features[chunk, columns], scratch)
