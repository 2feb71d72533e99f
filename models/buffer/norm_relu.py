"""A norm and the ReLU after it on rows, a chunk at a time: forward, and backward with sums over all chunks.

R rows, r of them in a chunk, c columns; n images of H x W pixels in a chunk.
"""

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .norms import ChannelNorm
from .operations import (
    Affine,
    add_chunks,
    add_scaled,
    affine_of,
    affine_relu,
    apply_affine,
    relu_backward,
    sums_of_products,
    write_scaled,
)
from .rows import Scratch, Shape, as_nchw, as_rows

# How a gradient of few pixels stands for one of all: each pixel of a 2x2 pooling, or all pixels of an image, have an
# equal share.
Spread = Literal["pooled", "averaged"]


class NormRelu:
    """A norm and the ReLU after it, as operations on chunks of rows. It belongs to one forward or backward pass.

    Args:
        norm: The norm of c channels.
        activated: Memory for the result of a chunk.
        contiguous: Memory for a chunk of rows that is not contiguous.
    """

    def __init__(self, norm: ChannelNorm, *, activated: Scratch, contiguous: Scratch):
        self.norm = norm
        self._activated, self._contiguous = activated, contiguous
        self._sums: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def _affine(self) -> Affine:
        return affine_of(self.norm)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute relu(norm(x)) of a chunk of rows (r, c): (r, c). The next chunk overwrites it."""
        return affine_relu(rows, self._affine, self._activated)

    def norm_alone(self, rows: Tensor, *, out: Tensor) -> Tensor:
        """Compute norm(x) of rows (r, c), without ReLU, and write it to `out` (r, c)."""
        return apply_affine(rows, self._affine, out=out)

    def first(self, rows: Tensor) -> "Activation":
        """Begin the forward pass of a chunk of rows (r, c) of which more than the ReLU is wanted."""
        return Activation(self, rows)

    def again(self, rows: Tensor) -> "Activation":
        """Begin the backward pass of a chunk of rows (r, c)."""
        # The sums need contiguous rows, and the rest is faster for them.
        if not rows.is_contiguous():
            rows = self._contiguous.shaped(*rows.shape).copy_(rows)
        return Activation(self, rows)

    def backward(self, grad: Tensor, chunk: "Activation") -> Tensor:
        """Go back through the ReLU alone, in place, and note the sums of the norm's parameters.

        Args:
            grad: Gradient of relu(norm(x)) of a chunk, (r, c).
            chunk: The chunk.

        Returns:
            g (r, c), the gradient of norm(x).
        """
        g = relu_backward(grad, chunk.activated)
        self._sums.append(sums_of_products(g, chunk.rows, self.norm.mean, self.norm.invstd))
        return g

    def backward_into(
        self,
        gradients: Tensor,
        grad: Tensor,
        chunk: "Activation",
        *,
        is_first: bool = False,
        spread: Spread | None = None,
        shape: Shape = (0, 0, 0),
    ) -> None:
        """Go back through ReLU and norm, but not through mean and variance, and note the sums.

        Args:
            gradients: Gets gamma * invstd * g added, (r, c).
            grad: Gradient of relu(norm(x)) of a chunk, (r, c), or of fewer pixels if `spread` says so.
            chunk: The chunk.
            is_first: Overwrite `gradients` instead of adding to them.
            spread: The gradient is that of a 2x2 average pooling after the ReLU, (n * (H // 2) * (W // 2), c), or of
                the average over all pixels of an image, (n, c).
            shape: (n, H, W), for `spread`.
        """
        if spread == "pooled":
            n, height, width = shape
            grad = as_nchw(grad, (n, height // 2, width // 2))
            grad = as_rows(pooling_backward(grad, as_nchw(chunk.activated, shape)))
        elif spread == "averaged":
            num_pixels = len(chunk.rows) // len(grad)
            grad = (grad / num_pixels).repeat_interleave(num_pixels, 0)
        g = self.backward(grad, chunk)
        (write_scaled if is_first else add_scaled)(g, self._affine.scale, out=gradients)

    def norm_backward_into(self, gradients: Tensor, grad: Tensor, rows: Tensor) -> None:
        """Go back through the norm without ReLU, as `backward_into` does, and overwrite `gradients`; (R, c) each."""
        self._sums.append(sums_of_products(grad, rows, self.norm.mean, self.norm.invstd))
        write_scaled(grad, self._affine.scale, out=gradients)

    def sums(self, collected: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Add up the sums of all chunks.

        Args:
            collected: A and D (C,) of a buffer, C >= c, to which the gradient through mean and variance is added; None
                if there is none.

        Returns:
            sum(g) and sum(g * (x - mean) * invstd), (c,) each: the gradients of the norm's bias and weight.
        """
        scale = self._affine.scale
        total, product = add_chunks(self._sums, scale.dtype)
        self._sums.clear()
        if collected:
            sums, products = (values[: len(total)] for values in collected)
            sums.addcmul_(scale, total)
            products.addcmul_(scale * self.norm.invstd, product)
        return total, product


class Activation:
    """A chunk of rows with its norm and ReLU, which are computed where they are needed.

    Args:
        norm_relu: The norm and ReLU.
        rows: (r, c).
    """

    def __init__(self, norm_relu: NormRelu, rows: Tensor):
        self.norm_relu, self.rows = norm_relu, rows

    @cached_property
    def activated(self) -> Tensor:
        """relu(norm(x)), (r, c)."""
        return self.norm_relu.forward(self.rows)

    def pooled(self, shape: Shape) -> Tensor:
        """2x2 average pooling of relu(norm(x)) of images (n, H, W), as rows (n * (H // 2) * (W // 2), c)."""
        return as_rows(F.avg_pool2d(as_nchw(self.activated, shape), 2))

    def averaged(self, shape: Shape) -> Tensor:
        """Average of relu(norm(x)) over the pixels of each image (n, H, W): (n, c)."""
        return as_nchw(self.activated, shape).mean((2, 3))


def pooling_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Compute the gradient of x (n, C, H, W) in 2x2 average pooling; only the shape of x matters, not its values."""
    return torch.ops.aten.avg_pool2d_backward.default(grad, x, [2, 2], [2, 2], [0, 0], False, True, None)
