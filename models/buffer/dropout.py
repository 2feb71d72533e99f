"""Dropout of rows: the values to keep are drawn once, and stored for the backward pass in a byte each.

N images, H x W pixels, R = N * H * W rows, C columns; r rows in a chunk.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .operations import drop
from .rows import Shape, as_rows


@dataclass(frozen=True)
class Dropout:
    """Dropout of rows (R, C), with a mask that has been drawn.

    Attributes:
        keep_rate: Values that are kept are divided by this.
        mask: bool (R, C), True where a value is kept; None if nothing is dropped.
    """

    keep_rate: float = 1
    mask: Tensor | None = None

    @classmethod
    def draw(
        cls, drop_rate: float, like: Tensor, shape: Shape, num_columns: int, memory_format: torch.memory_format
    ) -> "Dropout":
        """Draw the mask that `F.dropout` would draw for feature maps (N, C, H, W).

        Args:
            drop_rate: Probability of dropping a value, above 0 and below 1.
            like: A tensor of the dtype of the feature maps, on their device.
            shape: (N, H, W).
            num_columns: C.
            memory_format: Memory format of the feature maps; random numbers are drawn in its order.
        """
        n, height, width = shape
        size = (n, num_columns, height, width)
        if like.device.type == "cpu":
            # F.dropout draws the same numbers here, but takes three tensors of the dtype of the feature maps for it.
            kept = torch.empty(size, dtype=torch.bool, device=like.device, memory_format=memory_format)
            kept.bernoulli_(1 - drop_rate)
        else:
            ones = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format).fill_(1)
            kept = F.dropout(ones, drop_rate) != 0
        return cls(1 - drop_rate, as_rows(kept))

    def of(self, chunk: slice) -> "Dropout":
        """Return the dropout of a chunk of the rows."""
        return self if self.mask is None else Dropout(self.keep_rate, self.mask[chunk])

    def apply(self, rows: Tensor) -> Tensor:
        """Drop values of rows (R, C) in place; dropout of their gradients is the same."""
        return rows if self.mask is None else drop(rows, self.mask, self.keep_rate)


NO_DROPOUT = Dropout()
