"""Dropout of rows: which values are kept is drawn once, and noted for the backward pass in a byte each.

N images, H x W pixels, R = N * H * W rows, C columns; r rows in a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import as_rows


@dataclass(frozen=True)
class Dropout:
    """What dropout does to maps, as rows (R, C).

    Attributes:
        keep_rate: Values that are kept are divided by it.
        mask: bool (R, C), True where a value is kept; empty if nothing is dropped.
    """

    keep_rate: float = 1
    mask: tuple[Tensor, ...] = ()

    @classmethod
    def draw(
        cls,
        drop_rate: float,
        rows: Tensor,
        shape: tuple[int, int, int],
        num_columns: int,
        memory_format: torch.memory_format,
    ) -> "Dropout":
        """Draw what `F.dropout` keeps of maps that it gets next.

        Args:
            drop_rate: Probability of dropping a value, above 0 and below 1.
            rows: Of the type of the maps, on their device.
            shape: (N, H, W).
            num_columns: C.
            memory_format: Of the maps; in its order random numbers are drawn.
        """
        n, *sides = shape
        layout = {"device": rows.device, "memory_format": memory_format}
        if rows.device.type == "cpu":
            # F.dropout draws the same numbers here, but takes three tensors in the type of the maps for it.
            kept = torch.empty((n, num_columns, *sides), dtype=torch.bool, **layout).bernoulli_(1 - drop_rate)
        else:
            kept = F.dropout(torch.empty((n, num_columns, *sides), dtype=rows.dtype, **layout).fill_(1), drop_rate) != 0
        return cls(1 - drop_rate, (as_rows(kept),))

    def of(self, rows: Tensor, chunk: slice) -> Tensor:
        """Drop values of a chunk of rows (r, C) in place. It does the same to their gradients."""
        for mask in self.mask:
            # A CPU converts bytes to other numbers in half the time that it takes for bool.
            rows.mul_(mask[chunk].view(torch.uint8)).div_(self.keep_rate)
        return rows

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Dropout":
        """The same with the next group in place of its own mask."""
        return Dropout(self.keep_rate, next(groups))


NO_DROPOUT = Dropout()
