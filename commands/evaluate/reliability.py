"""Whether the probabilities of a network can be believed: its calibration error and its likelihood.

Confidence is the probability of the predicted class. n is the number of images in a batch, C the number of classes.

References:
    Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv:1706.04599).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.errors import RunError

BINS = 15  # of equal width, as in the paper


@dataclass
class ReliabilityCounts:
    """Sums over the images that a network has classified, in bins of confidence.

    Attributes:
        temperature: Logits are divided by it; it changes no prediction.
        loss: float64 (), sum of the negative log likelihoods, which are cross entropies.
        images: float64 (BINS,), number of images.
        correct: float64 (BINS,), number of images that are classified correctly.
        confidence: float64 (BINS,), sum of the confidences.
    """

    temperature: float
    loss: Tensor
    images: Tensor
    correct: Tensor
    confidence: Tensor

    @classmethod
    def zeros(cls, device: torch.device, *, temperature: float = 1.0) -> "ReliabilityCounts":
        """Begin without any image."""
        loss = torch.zeros((), dtype=torch.float64, device=device)
        return cls(temperature, loss, *torch.zeros(3, BINS, dtype=torch.float64, device=device).unbind())

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (n, C) and labels (n,)."""
        # float64 costs little here: a batch has few logits, however large its images are.
        scaled = logits.double() / self.temperature
        self.loss += F.cross_entropy(scaled, labels, reduction="sum")
        confidence = scaled.softmax(1).amax(1)
        # A bin includes its upper end, so that the last one has the confidence 1.
        borders = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)[1:-1]
        bins = torch.bucketize(confidence, borders)
        self.images.index_add_(0, bins, torch.ones_like(confidence))
        self.correct.index_add_(0, bins, (logits.argmax(1) == labels).double())
        self.confidence.index_add_(0, bins, confidence)


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies between two values.

    Attributes:
        low: Lower end, which does not belong to the bin.
        high: Upper end, which does.
        images: Number of images.
        confidence: Their average confidence; None if there are none.
        accuracy: Fraction of them that is classified correctly; None if there are none.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """How far the probabilities of a network agree with how often it is right.

    Attributes:
        temperature: Logits were divided by it.
        loss: Average negative log likelihood, natural logarithm.
        calibration_error: Expected calibration error: the average over all images of the difference between confidence
            and accuracy in their bin.
        confidence: Average confidence.
        bins: Bins of equal width from 0 to 1.
    """

    temperature: float
    loss: float
    calibration_error: float
    confidence: float
    bins: tuple[Bin, ...]

    @classmethod
    def from_counts(cls, counts: ReliabilityCounts) -> "Reliability":
        """Wait for the device, and average over one image or more.

        Raises:
            RunError: If the loss is NaN or infinite.
        """
        images, correct, confidence = torch.stack([counts.images, counts.correct, counts.confidence]).cpu()
        total = images.sum().item()
        loss = counts.loss.item() / total
        if not math.isfinite(loss):
            raise RunError("the test loss is NaN or infinite, so the network's predictions mean nothing")
        bins = [
            Bin(i / BINS, (i + 1) / BINS, int(n), summed / n if n else None, right / n if n else None)
            for i, (n, right, summed) in enumerate(torch.stack([images, correct, confidence], 1).tolist())
        ]
        error = (correct - confidence).abs().sum().item() / total
        return cls(counts.temperature, loss, error, confidence.sum().item() / total, tuple(bins))
