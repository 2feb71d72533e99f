"""Predictions counted by true class. n is the number of images in a batch, C the number of classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOP_K = 5  # predictions that a top-5 error allows for each image


@dataclass
class ConfusionCounts:
    """Counts over the images that a network has classified.

    Attributes:
        top5_misses: int64 (), number of images whose class is not among the five highest logits.
        matrix: int64 (C, C), number of images by true class (row) and predicted class (column).
    """

    top5_misses: Tensor
    matrix: Tensor

    @classmethod
    def zeros(cls, num_classes: int, device: torch.device) -> "ConfusionCounts":
        """Begin without any image."""
        return cls(
            top5_misses=torch.zeros((), dtype=torch.int64, device=device),
            matrix=torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, C) and labels (n,)."""
        num_classes = len(self.matrix)
        top = logits.topk(min(TOP_K, num_classes)).indices
        self.top5_misses += (top != labels[:, None]).all(1).sum()
        # bincount would wait for the device to learn the largest index.
        cells = labels * num_classes + logits.argmax(1)
        self.matrix.view(-1).index_add_(0, cells, torch.ones_like(cells))
