"""Loss and error over many batches, summed on the device without waiting for it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from train.processes import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Metrics:
    """Averages over some images.

    Attributes:
        loss: Cross entropy with the natural logarithm.
        error: Fraction of images that are classified wrongly.
    """

    loss: float
    error: float


class NonFiniteLoss(Exception):
    """The loss of a batch was NaN or infinite.

    Args:
        batch: The first such batch, counted from 1.
    """

    def __init__(self, batch: int):
        super().__init__(f"batch {batch}")
        self.batch = batch


class RunningMetrics:
    """Loss and error of the batches so far, and the first numerical failure: a loss that is NaN or infinite.

    All numbers are on the device, and are changed in place, so that a CUDA graph can repeat what changes them.

    Args:
        device: The device of the batches.
    """

    def __init__(self, device: torch.device):
        self.batches = torch.zeros((), device=device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # of losses, of wrong answers, of images
        self.first_failure = torch.full((), math.inf, device=device)  # the batch; infinite if there is none

    def reset(self) -> None:
        """Begin again without any batch."""
        self.batches.zero_()
        self.sums.zero_()
        self.first_failure.fill_(math.inf)

    def begin_batch(self) -> None:
        """Count a batch; everything that is added from now on belongs to it."""
        self.batches += 1

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add n images of the batch.

        Args:
            loss: Sum of their losses, ().
            logits: Their logits, (n, classes).
            labels: Their labels, (n,), or the probability of each class, (n, classes), of which the most probable one
                is the right answer.
        """
        answers = labels.argmax(1) if labels.ndim == 2 else labels
        wrong = (logits.argmax(1) != answers).sum()
        images = torch.full_like(wrong, len(labels))
        self.sums += torch.stack([loss.double(), wrong.double(), images.double()])
        here = torch.where(loss.isfinite(), math.inf, self.batches)
        torch.minimum(self.first_failure, here, out=self.first_failure)

    def all_reduce_failure(self, processes: ProcessGroup) -> None:
        """Tell all processes of the first numerical failure in any of them."""
        processes.all_reduce_min(self.first_failure)

    @property
    def failed(self) -> Tensor:
        """Whether there was a numerical failure: 1.0 or 0.0, float32 ()."""
        return self.first_failure.isfinite().float()

    def read(self, processes: ProcessGroup = SINGLE_PROCESS) -> Metrics:
        """Wait for the device and return the averages. Nothing changes, so that more batches may follow.

        Args:
            processes: The processes whose images are averaged over; by default this one alone.

        Raises:
            NonFiniteLoss: If a loss was NaN or infinite.
        """
        sums, failure = self.sums.clone(), self.first_failure.clone()
        processes.all_reduce_sum(sums)
        processes.all_reduce_min(failure)
        loss, wrong, images, first_failure = torch.cat([sums, failure[None]]).tolist()
        if math.isfinite(first_failure):
            raise NonFiniteLoss(int(first_failure))
        images = max(images, 1)  # a process may have none so far
        return Metrics(loss / images, wrong / images)
