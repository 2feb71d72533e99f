"""One buffer for the feature maps of a dense block, and one for their gradients.

A dense layer reads all feature maps that the block has so far, and normalises them first. Here all feature maps lie
side by side in one tensor of rows: a row is a pixel of an image, its columns are the channels. The input of a layer is
a slice, the first c columns, and nothing is ever concatenated.

Mean and variance of a channel over the batch do not depend on the layer that reads it. So they are computed once, when
the channel is written, and what is stored is the normalised channel

    xhat = (x - mean) * invstd

The batch norm of a layer is then u = gamma * xhat + beta. The norm, the ReLU a = relu(u) and a 1x1 convolution treat
each row alone: they work through chunks of rows that stay in the cache, and are cheap to repeat in the backward pass.

Backward, with g = dLoss/da where u > 0 and 0 elsewhere, a layer adds gamma * g to the gradient G of xhat, and needs
dbeta = sum(g) and dgamma = sum(g * xhat) for itself. Sums over rows are linear, so those of G follow from those of the
layers that have read the channel: sum(G) = sum of gamma * dbeta, sum(G * xhat) = sum of gamma * dgamma. The part of the
gradient that goes through mean and variance is applied once for each channel, after all its readers, and not once for
each reader:

    dLoss/dx = invstd * (G - sum(G) / R - xhat * sum(G * xhat) / R)

N images, H x W pixels, R = N * H * W rows, C channels of the whole block, c of them read by a layer; n images or r rows
in a chunk.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .norms import EPS, BufferNorm, Statistics
from .operations import (
    Affine,
    NormGradient,
    add_chunks,
    add_scaled,
    affine_relu,
    moments,
    norm_backward,
    normalise,
    sums_of_products,
    write_scaled,
)
from .rows import Scratch, Shape, as_rows, chunks_of_images


class FeatureBuffer:
    """All feature maps of a dense block, normalised, with the statistics of those that have been written.

    Args:
        x: Input of the block (N, C0, H, W).
        num_features: Channels C of the whole block.
        dtype: The dtype of the rows.
    """

    def __init__(self, x: Tensor, num_features: int, dtype: torch.dtype):
        n, _, height, width = x.shape
        self.shape = (n, height, width)
        self.num_rows = n * height * width
        self.rows = x.new_empty(self.num_rows, num_features, dtype=dtype)
        self.statistics = Statistics(*x.new_zeros(3, num_features, dtype=torch.promote_types(dtype, torch.float32)))
        self.end = 0
        self.append(as_rows(x.to(dtype)))

    def append(self, rows: Tensor) -> None:
        """Normalise new channels, rows (R, k), and write them after those that are there."""
        new = slice(self.end, self.end + rows.shape[1])
        mean, unbiased, invstd = (values[new] for values in self.statistics)
        found = moments(rows)
        mean.copy_(found.mean)
        unbiased.copy_(found.unbiased)
        torch.rsqrt(found.variance + EPS, out=invstd)
        normalise(rows, mean, invstd, out=self.rows[:, new])
        self.end = new.stop


class GradientBuffer:
    """Gradients of all channels of a feature buffer.

    Args:
        rows: The rows of the feature buffer (R, C).
        statistics: The statistics of its channels.
    """

    def __init__(self, rows: Tensor, statistics: Statistics):
        self.features = rows
        self.invstd = statistics.invstd
        self.rows = torch.empty_like(rows)  # G
        self.sums = torch.zeros_like(self.invstd)  # sum(G)
        self.products = torch.zeros_like(self.invstd)  # sum(G * xhat)

    def begin(self, chunk: slice, grad: Tensor, xhat: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Like `add`, for the last part of a block: it has read all channels, and there is nothing to add to yet."""
        write_scaled(grad, affine.scale, out=self.rows[chunk])
        return sums_of_products(grad, xhat)

    def add(self, chunk: slice, grad: Tensor, xhat: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
        """Add the gradient of a chunk of the first c channels, as one of their readers has it.

        Args:
            chunk: A slice of rows.
            grad: g (r, c).
            xhat: (r, c), contiguous.
            affine: The reader's norm.

        Returns:
            sum(g) and sum(g * xhat) over the chunk, (c,) each.
        """
        add_scaled(grad, affine.scale, out=self.rows[chunk, : grad.shape[1]])
        return sums_of_products(grad, xhat)

    def close(self, norm: BufferNorm, chunks: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Add up the sums of all chunks of a reader, and note the gradient that goes through mean and variance.

        Args:
            norm: The reader's.
            chunks: For each chunk the result of `add`, followed by the gradient of a convolution's weight if there is
                one.

        Returns:
            dgamma, dbeta, and the gradient of the weight.
        """
        total, product, *grad_weight = add_chunks(chunks, self.sums.dtype)
        if norm.offset is None:
            scale, columns = norm.affine.scale, slice(total.shape[0])
            self.sums[columns].addcmul_(scale, total)
            self.products[columns].addcmul_(scale if norm.ratio is None else scale * norm.ratio**2, product)
        return norm.grad_weight(total, product), total, *grad_weight

    def take(self, columns: slice) -> Callable[[slice], Tensor]:
        """Return a function that computes dLoss/dx (r, k) of some columns for a chunk of rows.

        All readers of the columns have to be closed. The result for a chunk shares its memory with earlier ones.
        """
        invstd = self.invstd[columns]
        per_row = invstd / -self.rows.shape[0]
        gradient = NormGradient(invstd, per_row * self.products[columns], per_row * self.sums[columns])
        scratch = Scratch(self.rows, self.rows.dtype)
        return lambda chunk: norm_backward(self.rows[chunk, columns], self.features[chunk, columns], gradient, scratch)


class Workspace:
    """The rows of a feature buffer, and scratch memory that all parts of the block use one after the other.

    Args:
        rows: (R, C).
        shape: (N, H, W) with R = N * H * W.

    Attributes:
        bottleneck: For the bottleneck of a layer, z (R, b).
        bottleneck_grad: For the gradient of a bottleneck.
        bottleneck_chunk: For a chunk of anything computed from either.
    """

    def __init__(self, rows: Tensor, shape: Shape):
        self.rows = rows
        self.num_rows = rows.shape[0]
        self.shape = shape
        self.bottleneck, self.bottleneck_grad = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)
        self.bottleneck_chunk = Scratch(rows, rows.dtype)
        self._xhat, self._activated = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)

    def chunks_of_images(self, num_columns: int, *, are_joined: bool = False) -> Iterator[tuple[slice, slice]]:
        """Slice all images into chunks of about `num_columns` columns; see `rows.chunks_of_images`."""
        return chunks_of_images(self.rows, self.shape, num_columns, are_joined=are_joined)

    def shape_of(self, images: slice) -> Shape:
        """Return the shape (n, H, W) of some images."""
        _, height, width = self.shape
        return images.stop - images.start, height, width

    def activated(self, chunk: slice, affine: Affine) -> Tensor:
        """Compute norm and ReLU of the first c channels of a chunk: (r, c)."""
        return affine_relu(self.rows[chunk, : affine.scale.shape[0]], affine, self._activated)

    def read(self, chunk: slice, affine: Affine) -> tuple[Tensor, Tensor]:
        """Return the first c channels of a chunk, contiguous, and norm and ReLU of them: (r, c) each."""
        num_columns = affine.scale.shape[0]
        xhat = self.rows[chunk, :num_columns]
        if not xhat.is_contiguous():
            xhat = self._xhat.shaped(*xhat.shape).copy_(xhat)
        return xhat, affine_relu(xhat, affine, self._activated)
