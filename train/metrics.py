"""Loss and error of many batches, summed on the device without waiting for it."""

import math

import torch
from torch import Tensor

from train.processes import ProcessGroup
from train.run.history import Metrics


class NonFiniteLoss(Exception):
    """The loss of a batch, counted from 1, was NaN or infinite."""

    def __init__(self, batch: int):
        super().__init__(f"batch {batch}")
        self.batch = batch


class RunningMetrics:
    """Loss and error of the batches so far.

    It also remembers the first batch whose loss was NaN or infinite. From then on `failed` is 1.

    Args:
        device: Where the batches are.
    """

    def __init__(self, device: torch.device):
        self.batches = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # of losses, of wrong answers, of images
        self.first_failure = torch.full((), math.inf, device=device)  # the batch

    def begin_batch(self) -> None:
        """Count a batch. What is added from now on belongs to it."""
        self.batches += 1

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add images of the batch: the sum of their losses (), their logits (n, classes) and labels (n,)."""
        wrong = (logits.argmax(1) != labels).sum()
        images = torch.full_like(wrong, len(labels))
        self.sums += torch.stack([loss.double(), wrong.double(), images.double()])
        here = torch.where(loss.isfinite(), math.inf, self.batches)
        self.first_failure = torch.minimum(self.first_failure, here)

    def agree_on_failure(self, processes: ProcessGroup) -> None:
        """Let all processes know of the first failure in any of them."""
        processes.all_reduce_min(self.first_failure)

    def gather(self, processes: ProcessGroup) -> None:
        """Let all processes have the sums of all."""
        processes.all_reduce_sum(self.sums)
        processes.all_reduce_min(self.first_failure)

    @property
    def failed(self) -> Tensor:
        """float32 (): 1 if a loss was NaN or infinite, else 0."""
        return self.first_failure.isfinite().float()

    def read(self) -> Metrics:
        """Wait for the device and return the averages.

        Raises:
            NonFiniteLoss: If a loss was NaN or infinite.
        """
        loss, wrong, images, first_failure = torch.cat([self.sums, self.first_failure[None]]).tolist()
        if math.isfinite(first_failure):
            raise NonFiniteLoss(int(first_failure))
        images = max(images, 1)  # a process may have none so far
        return Metrics(loss / images, wrong / images)
