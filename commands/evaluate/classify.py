"""Classify all images of a loader, on its device and without waiting for it, and count or keep what the network says.

n is the number of images in a batch, C the number of classes.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from train.terminal import Bar


class LabelledBatches(Protocol):
    """Batches of images (n, 3, H, W), labels (n,) and the number of images, on the device of the network."""

    @property
    def num_images(self) -> int:
        """Images in all batches together."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Iterate over all images once."""
        ...


class Listener(Protocol):
    """Takes the logits of each batch, to count something in them or to keep them."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, C) and labels (n,)."""
        ...


class Logits:
    """Keeps the logits and the labels of all batches."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, C) and labels (n,)."""
        self._batches.append((logits, labels))

    def read(self) -> tuple[Tensor, Tensor]:
        """Return all logits, (N, C), and all labels, (N,), on the CPU."""
        logits, labels = zip(*self._batches, strict=True)
        return torch.cat(logits).cpu(), torch.cat(labels).cpu()


@torch.no_grad()
def classify(model: nn.Module, batches: LabelledBatches, *listeners: Listener, name: str = "test images") -> None:
    """Classify all images.

    Args:
        model: Maps images (n, 3, H, W) to logits (n, C); put into eval mode.
        batches: The images. Progress is shown as a bar on stderr if that is a terminal.
        listeners: Each takes the logits and labels of each batch.
        name: Text in front of the bar.
    """
    model.eval()
    with Bar(name, batches.num_images) as bar:
        for images, labels, _ in batches:
            logits = model(images)
            for listener in listeners:
                listener.add(logits, labels)
            bar.advance(len(labels))
