"""What a network answers on a test set, summed on the device without waiting for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.terminal import Bar

GUESSES = 5


class Images(Protocol):
    """Batches (images (n, 3, H, W), labels (n,), n) on the device of the network."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """All images once."""
        ...


@dataclass
class Tally:
    """Sums over the images that a network has answered on.

    Attributes:
        loss: float64 (), of the cross entropies.
        missed: int64 (), of images whose class is not among the five highest logits.
        confusion: int64 (classes, classes), of images by their class (row) and the network's answer (column).
    """

    loss: Tensor
    missed: Tensor
    confusion: Tensor

    @classmethod
    def empty(cls, num_classes: int, device: torch.device) -> "Tally":
        """The sums over no image."""
        counts = {"dtype": torch.int64, "device": device}
        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            missed=torch.zeros((), **counts),
            confusion=torch.zeros(num_classes, num_classes, **counts),
        )

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, classes) and labels (n,)."""
        num_classes = len(self.confusion)
        self.loss += F.cross_entropy(logits.double(), labels, reduction="sum")  # few numbers, whatever the images cost
        guesses = logits.topk(min(GUESSES, num_classes)).indices
        self.missed += (guesses != labels[:, None]).all(1).sum()
        # bincount would wait for the device, to learn the largest index.
        cells = labels * num_classes + logits.argmax(1)
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))


@torch.no_grad()
def tally(model: nn.Module, images: Images, *, num_classes: int) -> Tally:
    """Let a network answer on all images, in eval mode. A bar is shown on stderr if that is a terminal."""
    model.eval()
    sums = Tally.empty(num_classes, next(model.parameters()).device)
    with Bar("test images", images.num_images) as bar:
        for batch, labels, _ in images:
            sums.add(model(batch), labels)
            bar.advance(len(labels))
    return sums
