"""How a block works on its rows: chunk by chunk, with operations of PyTorch, in scratch memory.

R rows, C channels of a block, c of them read by a layer, b of a bottleneck, k new ones; r rows in a chunk.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .dropout import NO_DROPOUT, Dropout
from .norm_relu import NormRelu
from .norms import ChannelNorm, Statistics
from .operations import ChunkMoments, LinearGradient, chunk_moments, join_moments, linear_gradient
from .rows import Scratch, Shape, chunks_of_images, chunks_of_rows, numbers_in_a_chunk


class Workspace:
    """The rows of a feature buffer, and scratch memory that all parts of the block use one after the other.

    Args:
        rows: (R, C).
        shape: (N, H, W) with R = N * H * W.
        is_small: Take less memory and more time: chunks are half as large, and the backward pass computes a
            bottleneck that was not kept twice, a chunk at a time, so that it never exists as a whole.

    Attributes:
        numbers_in_a_chunk: About how many numbers a chunk of rows has.
        bottleneck: For the bottleneck of a layer, z (R, b).
        bottleneck_grad: For the gradient of a bottleneck.
    """

    def __init__(self, rows: Tensor, shape: Shape, *, is_small: bool):
        self.rows, self.is_small = rows, is_small
        self.num_rows = rows.shape[0]
        self.shape = shape
        self.numbers_in_a_chunk = numbers_in_a_chunk(rows) // (2 if is_small else 1)
        self.bottleneck, self.bottleneck_grad = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)
        self._chunk_of_bottleneck = Scratch(rows, rows.dtype)
        self._contiguous, self._activated = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)

    def chunks_of_images(self, num_columns: int, *, are_joined: bool = False) -> Iterator[tuple[slice, slice]]:
        """Slice all images into chunks of about `num_columns` columns; see `rows.chunks_of_images`."""
        return chunks_of_images(self.shape, num_columns, self.numbers_in_a_chunk, are_joined=are_joined)

    def chunks_of_rows(self, num_columns: int, within: slice | None = None) -> Iterator[slice]:
        """Slice all rows into chunks of about `num_columns` columns; see `rows.chunks_of_rows`."""
        return chunks_of_rows(self.num_rows, num_columns, self.numbers_in_a_chunk, within)

    def columns_for_bottleneck(self, num_bottleneck: int, num_inputs: int) -> int:
        """Return the columns by which the backward pass from a layer's new channels to its bottleneck sizes chunks."""
        return max(num_bottleneck, num_inputs)  # the bottleneck is computed again from its inputs in the same chunk

    def chunks_for_transition(self, *, has_dropout: bool) -> Iterator[tuple[slice, slice]]:
        """Slice all images into chunks for the backward pass of a transition or final norm.

        Args:
            has_dropout: Whether a transition has dropout: then pooling does not come first.
        """
        return self.chunks_of_images(self.rows.shape[1])

    def shape_of(self, images: slice) -> Shape:
        """Return the shape (n, H, W) of some images."""
        _, height, width = self.shape
        return images.stop - images.start, height, width

    def norm_relu(self, norm: ChannelNorm) -> NormRelu:
        """Apply a norm and ReLU to chunks of the first c channels of the buffer."""
        return NormRelu(norm, activated=self._activated, contiguous=self._contiguous)

    def norm_relu_of_bottleneck(self, norm: ChannelNorm) -> NormRelu:
        """Apply a norm and ReLU to chunks of a bottleneck."""
        return NormRelu(norm, activated=self._chunk_of_bottleneck, contiguous=self._contiguous)

    def cast(self, weight: Tensor) -> Tensor:
        """Return the weight of a convolution in the dtype of the rows, and as wide as `norm_relu` makes its input."""
        return weight.to(self.rows.dtype)

    def moments(self) -> "MomentsOfChunks":
        """Begin to compute mean and variance of rows that come in chunks."""
        return MomentsOfChunks()

    def bottleneck_gradient(
        self, norm: ChannelNorm, total: Tensor, product: Tensor
    ) -> Callable[[Tensor, Tensor, Dropout], Tensor]:
        """Return a function that computes the gradient of a bottleneck from that of its norm, for a chunk.

            dLoss/dz = gamma * invstd * (g - sum(g) / R - zhat * sum(g * zhat) / R),   zhat = (z - mean) * invstd

        or only its first term if the norm is frozen.

        Args:
            norm: The norm.
            total: sum(g), (b,).
            product: sum(g * zhat), (b,).

        Returns:
            A function of g (r, b), z (r, b) and the dropout of the bottleneck. The next result overwrites the last.
        """
        scale = norm.weight * norm.invstd
        if norm.is_frozen:
            gradient = LinearGradient(scale, torch.zeros_like(scale), torch.zeros_like(scale))
        else:
            per_row = scale / -self.num_rows
            slope = per_row * norm.invstd * product
            gradient = LinearGradient(scale, slope, torch.addcmul(per_row * total, slope, norm.mean, value=-1))

        def compute(g: Tensor, z: Tensor, dropout: Dropout) -> Tensor:
            return dropout.apply(linear_gradient(g, z, gradient, self._chunk_of_bottleneck))

        return compute

    def gradient_of_channels(
        self,
        gradients: Tensor,
        columns: slice,
        mean: Tensor,
        collected: tuple[Tensor, Tensor],
        *,
        is_padded: bool = False,
    ) -> Callable[[slice, Dropout], Tensor]:
        """Return a function that computes the gradient of some channels of the buffer, for a chunk.

            dLoss/dx = G - A / R - (x - mean) * D / R

        Args:
            gradients: G (R, C).
            columns: The channels.
            mean: Their means (k,).
            collected: A and D, (k,) each.
            is_padded: Whether the result may have further columns of zeros, for kernels on a GPU that read it.

        Returns:
            A function of a slice of rows and their dropout. The next result overwrites the last.
        """
        sums, products = collected
        slope = products / -self.num_rows
        offset = torch.addcmul(sums / -self.num_rows, slope, mean, value=-1)
        gradient, scratch = LinearGradient(None, slope, offset), Scratch(self.rows, self.rows.dtype)

        def compute(chunk: slice, dropout: Dropout) -> Tensor:
            grad, x = gradients[chunk, columns], self.rows[chunk, columns]
            return dropout.apply(linear_gradient(grad, x, gradient, scratch))

        return compute


class MomentsOfChunks:
    """Computes mean and variance of each column of rows that come in chunks."""

    def __init__(self) -> None:
        self._chunks: list[ChunkMoments] = []

    def add(self, rows: Tensor, dropout: Dropout = NO_DROPOUT, *, out: Tensor | None = None) -> None:
        """Add a chunk.

        Args:
            rows: (r, c), contiguous. Values are dropped in place.
            dropout: The dropout of the chunk.
            out: Where to copy the chunk to, (r, c).
        """
        self._chunks.append(chunk_moments(dropout.apply(rows)))
        if out is not None:
            out.copy_(rows)

    def result(self, eps: float, *, out: Statistics | None = None) -> Statistics:
        """Return the statistics of all chunks.

        Args:
            eps: Added to the variance.
            out: Where to write them to, (c,) each; None for new memory.
        """
        statistics = join_moments(self._chunks, eps)
        for values, found in zip(out or (), statistics, strict=False):
            values.copy_(found)
        return out or statistics
