"""One buffer for the feature maps of a dense block, and one for their gradients.

A dense layer reads all feature maps that the block has so far, and normalises them first. Here all feature maps lie
side by side in one tensor of rows: a row is a pixel of an image, its columns are the channels. The input of a layer is
a slice, the first c columns, and nothing is ever concatenated.

Mean and variance of a channel over the batch do not depend on the layer that reads it. So they are computed once, when
the channel is written. The batch norm of a layer is then an affine function of each channel,

    u = gamma * (x - mean) * invstd + beta

The norm, the ReLU a = relu(u) and a 1x1 convolution treat each row alone: on a CPU they work through chunks of rows
that stay in the cache, and they are cheap to repeat in the backward pass.

Channels are stored as the convolutions make them, not normalised: a convolution can write them in place on a GPU, and
chunks of them can be written while they are in the cache of a CPU.

Backward, with g = dLoss/da where u > 0 and 0 elsewhere, a layer needs dbeta = sum(g) and
dgamma = sum(g * (x - mean)) * invstd for itself. With s = gamma * invstd, its share of the gradient of x is

    s * (g - dbeta / R - (x - mean) * invstd * dgamma / R)

The first term is added to a buffer of gradients, G. The others, which go through mean and variance, are the same
function of x for all readers of a channel. They are applied once for each channel, after all its readers:

    dLoss/dx = G - A / R - (x - mean) * D / R,   A = sum of s * dbeta,   D = sum of s * invstd * dgamma

N images, H x W pixels, R = N * H * W rows, C channels of the whole block, c of them read by a layer; n images or r rows
in a chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .dropout import NO_DROPOUT, Dropout
from .kernels.choice import workspace_for
from .norm_relu import NormRelu
from .norms import EPS, Statistics
from .rows import as_rows, empty_buffer
from .workspace import Workspace


class FeatureBuffer:
    """All feature maps of a dense block, with the statistics of those that have been written.

    Args:
        x: Input of the block (N, C0, H, W).
        num_features: Channels C of the whole block.
        dtype: The dtype of the rows.
        is_small: See `Workspace`.

    Attributes:
        rows: The feature maps (R, C).
        statistics: Their statistics.
        work: Operations on the rows.
    """

    def __init__(self, x: Tensor, num_features: int, dtype: torch.dtype, *, is_small: bool = False):
        n, num_inputs, height, width = x.shape
        self.rows = empty_buffer(x, n * height * width, num_features, dtype)
        self.statistics = Statistics(*x.new_zeros(3, num_features, dtype=torch.promote_types(dtype, torch.float32)))
        self.work = workspace_for(self.rows, (n, height, width), is_small=is_small, is_forward=True)
        self.end = 0
        moments, inputs = self.work.moments(), as_rows(x.to(dtype))
        rows, statistics = self.append(num_inputs)
        moments.add(inputs, out=rows)
        moments.result(EPS, out=statistics)

    def append(self, num_new: int) -> tuple[Tensor, Statistics]:
        """Return the columns of the next k = `num_new` channels (R, k), and the place of their statistics, to fill."""
        new = slice(self.end, self.end + num_new)
        self.end = new.stop
        return self.rows[:, new], self.statistics.of(new)


class GradientBuffer:
    """Gradients of all channels of a feature buffer.

    Args:
        work: Operations on the rows of the feature buffer (R, C).
        mean: Means of its channels (C,).

    Attributes:
        rows: G (R, C). Its readers add to it.
        collected: A and D, (C,) each.
    """

    def __init__(self, work: Workspace, mean: Tensor):
        self._work, self._mean = work, mean
        self.rows = empty_buffer(work.rows, work.num_rows, work.rows.shape[1], work.rows.dtype)
        sums, products = mean.new_zeros(2, len(mean))
        self.collected = sums, products

    def close(self, norm_relu: NormRelu) -> tuple[Tensor, Tensor]:
        """Note the gradient of a reader of the first c channels that goes through mean and variance.

        Args:
            norm_relu: The reader's, after all chunks.

        Returns:
            The gradients of the norm's bias and weight, (c,) each.
        """
        return norm_relu.sums(None if norm_relu.norm.is_frozen else self.collected)

    def take(self, columns: slice, *, is_padded: bool = False) -> Callable[[slice, Dropout], Tensor]:
        """Return a function that computes dLoss/dx (r, k) of some columns, for a chunk of rows and their dropout.

        All readers of the columns have to be closed. The result for a chunk shares its memory with earlier ones. See
        `Workspace.gradient_of_channels`.
        """
        sums, products = self.collected
        collected = sums[columns], products[columns]
        return self._work.gradient_of_channels(self.rows, columns, self._mean[columns], collected, is_padded=is_padded)

    def take_inputs(self, num_inputs: int) -> Tensor:
        """Compute dLoss/dx (R, C0) of the channels that the block was given."""
        return self.take(slice(num_inputs))(slice(None), NO_DROPOUT)
