"""Predictions of a network on a test set, counted on its device without waiting for it.

n is the number of images in a batch, C the number of classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.terminal import Bar

TOP_K = 5  # predictions that a top-5 error allows for each image


class LabelledBatches(Protocol):
    """Batches of images (n, I, H, W), labels (n,) and the number of images, on the device of the network."""

    @property
    def num_images(self) -> int:
        """Images in all batches together."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Iterate over all images once."""
        ...


@dataclass
class ConfusionCounts:
    """Sums over the images that a network has classified.

    Attributes:
        loss: float64 (), sum of the cross entropies.
        top5_misses: int64 (), number of images whose class is not among the five highest logits.
        matrix: int64 (C, C), number of images by true class (row) and predicted class (column).
    """

    loss: Tensor
    top5_misses: Tensor
    matrix: Tensor

    @classmethod
    def zeros(cls, num_classes: int, device: torch.device) -> "ConfusionCounts":
        """Begin without any image."""
        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            top5_misses=torch.zeros((), dtype=torch.int64, device=device),
            matrix=torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, C) and labels (n,)."""
        num_classes = len(self.matrix)
        # float64 costs little here: a batch has few logits, however large its images are.
        self.loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        top = logits.topk(min(TOP_K, num_classes)).indices
        self.top5_misses += (top != labels[:, None]).all(1).sum()
        # bincount would wait for the device to learn the largest index.
        cells = labels * num_classes + logits.argmax(1)
        self.matrix.view(-1).index_add_(0, cells, torch.ones_like(cells))


@torch.no_grad()
def count_confusions(model: nn.Module, batches: LabelledBatches, *, num_classes: int) -> ConfusionCounts:
    """Classify all images, and count predictions by true class.

    Args:
        model: Maps images (n, I, H, W) to logits (n, C); put into eval mode.
        batches: The test set. Its progress is shown as a bar on stderr if that is a terminal.
        num_classes: C.
    """
    model.eval()
    counts = ConfusionCounts.zeros(num_classes, next(model.parameters()).device)
    with Bar("test images", batches.num_images) as bar:
        for images, labels, _ in batches:
            counts.add(model(images), labels)
            bar.advance(len(labels))
    return counts
