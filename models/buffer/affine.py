"""What norm layers do to each channel of rows, when mean and variance are known: forward, and backward.

R rows, r of them in a chunk, c channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .rows import Scratch


class Affine(NamedTuple):
    """What a norm layer does to the first c channels: scale * x + shift.

    Attributes:
        scale: (c,).
        shift: (c,).
    """

    scale: Tensor
    shift: Tensor


def activate(rows: Tensor, affine: Affine, scratch: Scratch) -> Tensor:
    """Norm and ReLU of rows (r, c), with gaps or without. Both passes call it, so that signs agree."""
    return apply_affine(rows, affine, out=scratch.shaped(*rows.shape)).relu_()


def apply_affine(rows: Tensor, affine: Affine, *, out: Tensor) -> Tensor:
    """Compute scale * x + shift of rows (r, c) and write it to `out` (r, c), in its type."""
    return torch.addcmul(affine.shift, rows, affine.scale, out=out)


class NormGradient(NamedTuple):
    """Gradient of normalised channels with respect to what was normalised: scale * g + slope * x + offset.

    Attributes:
        scale: (c,).
        slope: (c,).
        offset: (c,).
    """

    scale: Tensor
    slope: Tensor
    offset: Tensor

    def of(self, grad: Tensor, rows: Tensor, scratch: Scratch) -> Tensor:
        """Compute it for a chunk of g and x, (r, c) each, in their type."""
        out = scratch.shaped(*grad.shape)
        return torch.addcmul(self.offset, rows, self.slope, out=out).addcmul_(grad, self.scale)
