"""One step of training: gradients of a batch, and what the optimizer does with them."""

from contextlib import AbstractContextManager, nullcontext
from reprlib import repr as short_repr
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.metrics import RunningMetrics
from train.processes import SINGLE_PROCESS, ProcessGroup

LARGEST_SCALE = 2.0**127  # in 32 bits
SMALLEST_SCALE = 2**-10  # a gradient that overflows fp16 even so is above 6e7


class EndlessOverflow(Exception):
    """Gradients are infinite in fp16 however small the loss is scaled."""


class Stepper:
    """Takes steps with the gradient of the average loss over a batch.

    A batch may be computed in parts, one after the other, whose gradients are added up. The sum is that of the whole
    batch in one piece, but for batch norm: each part is normalised with its own statistics, and running statistics
    move once for each part.

    In fp16 the loss is scaled, so that small gradients do not vanish. A step whose gradients overflow is skipped, and
    the scale is halved. Nobody waits for the device to know.

    Args:
        model: Maps images (n, 3, H, W) to logits (n, classes). Under DistributedDataParallel it takes empty batches.
        optimizer: A fused one, of the model's parameters.
        scaler: Of the loss; switched off unless in fp16.
        processes: The processes that share a batch.
        accum_steps: Parts of a batch in each process, 1 or more.
        label_smoothing: This share of each label, from 0 to 1, is spread evenly over all classes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        *,
        processes: ProcessGroup = SINGLE_PROCESS,
        accum_steps: int = 1,
        label_smoothing: float = 0.0,
    ):
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.processes = processes
        self.accum_steps = accum_steps
        self.label_smoothing = label_smoothing
        self.skipped: Tensor | float = 0.0  # steps whose gradients overflowed, since `begin_epoch`
        self._failed: Tensor | float = 0.0
        optimizer.register_step_pre_hook(self._say_whether_to_skip)

    def begin_epoch(self) -> None:
        """Put the model into training mode and count from 0 again."""
        self.model.train()
        self.skipped = 0.0

    def take(self, images: Tensor, labels: Tensor, size: int, metrics: RunningMetrics) -> None:
        """Take a step, and add what was seen to the metrics; from a loss that is NaN or infinite on, none is taken.

        Args:
            images: (n, 3, H, W), this process's part of the batch; may be empty where there are several processes.
            labels: (n,).
            size: Images of the batch in all processes.
            metrics: Of the epoch so far.
        """
        self.optimizer.zero_grad()
        metrics.begin_batch()
        parts = zip(images.tensor_split(self.accum_steps), labels.tensor_split(self.accum_steps), strict=True)
        for i, (part, its_labels) in enumerate(parts, start=1):
            if len(part) or self.processes.world_size > 1:  # each process takes part in what all do together
                with self._exchange(is_last=i == self.accum_steps):
                    self._add_gradient(part, its_labels, size, metrics)
        metrics.agree_on_failure(self.processes)
        self._failed = metrics.failed
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _add_gradient(self, images: Tensor, labels: Tensor, size: int, metrics: RunningMetrics) -> None:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        metrics.add(loss.detach(), logits, labels)
        # DistributedDataParallel takes the average over all processes, where the sum is wanted.
        self.scaler.scale(loss * (self.processes.world_size / size)).backward()

    def _exchange(self, *, is_last: bool) -> AbstractContextManager:
        """Gradients are exchanged between processes with the last part of a batch."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _say_whether_to_skip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Combine what the scaler has found in the gradients, 0 or 1, with what the metrics have found in losses."""
        if self.scaler.is_enabled():
            self.skipped = self.skipped + optimizer.found_inf
            optimizer.found_inf = torch.maximum(optimizer.found_inf, self._failed)
        else:
            optimizer.found_inf = self._failed

    def check_scale(self) -> None:
        """Wait for the device, and see that the loss is still scaled by a useful number.

        Raises:
            EndlessOverflow: If not.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise EndlessOverflow

    def restore_scale(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a checkpoint; of one without a scale if the scaler is switched off.

        How it grows and shrinks is this program's own.

        Raises:
            ValueError: If the state is not that of a scaler.
        """
        if not self.scaler.is_enabled():
            return
        own = self.scaler.state_dict()
        scale, steps = state.get("scale"), state.get("_growth_tracker")
        if type(scale) is not float or not 0 < scale <= LARGEST_SCALE:
            raise ValueError(f"the scale of its loss is {short_repr(scale)}")
        if type(steps) is not int or not 0 <= steps < own["growth_interval"]:
            raise ValueError(f"the steps since its loss was scaled otherwise are {short_repr(steps)}")
        self.scaler.load_state_dict(own | {"scale": scale, "_growth_tracker": steps})

    def num_skipped(self) -> int | None:
        """Wait for the device, and return how many steps were skipped in the epoch; None where none can be."""
        return int(self.skipped) if self.scaler.is_enabled() else None
