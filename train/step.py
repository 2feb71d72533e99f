"""One step of training: the gradient of a batch, and what the optimizer does with it."""

from contextlib import AbstractContextManager, nullcontext
from reprlib import repr as short_repr
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.cuda_graph import CapturedSteps, Graphs
from train.ema import ExponentialMovingAverage
from train.metrics import RunningMetrics
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.run.unfinished_epoch import SUMS

LARGEST_SCALE = 2.0**127  # in 32 bits
SMALLEST_SCALE = 2**-10  # a gradient that overflows fp16 even so is above 6e7


class EndlessOverflow(Exception):
    """Gradients are infinite in fp16 however small the loss is scaled."""


class Stepper:
    """Takes steps with the gradient of the average loss over a batch.

    A batch may be split into micro-batches whose gradients are accumulated. Their sum is the gradient of the whole
    batch, except for batch norm: each micro-batch is normalised with its own statistics, and running statistics are
    updated once for each.

    In fp16 the loss is scaled, so that small gradients do not vanish. A step whose gradients overflow is skipped, and
    the scale is halved.

    No step waits for the device to find out whether it must be skipped. A fused optimizer reads the attribute
    `found_inf`, a number on the device, in its kernel, and changes nothing where it is 1. `GradScaler.step` sets it
    from the gradients in fp16. A hook that runs right before each step of the optimizer adds the numerical failures
    of the loss: from the first loss that is NaN or infinite on, `found_inf` is 1 and the parameters stay as they are.

    Everything that a step leaves for the next one is a tensor that it changes in place, so that it can be captured in a
    CUDA graph.

    Args:
        model: Maps images (n, C, H, W) to logits (n, classes). Under DistributedDataParallel it takes empty batches.
        optimizer: A fused optimizer of the model's parameters.
        scaler: Scales the loss; None or a disabled one in every precision except fp16.
        processes: The processes that share a batch.
        accum_steps: Micro-batches of a batch in each process, at least 1.
        label_smoothing: Fraction of each label, from 0 to 1, that is spread evenly over all classes.
        clip_grad: Largest norm of the gradient of all parameters together; a longer one is shortened to it. None: no
            limit.
        average: Takes in the weights after each step that is not skipped; None for no average.
        graphs: Captures steps; None takes them all eagerly. It needs a single process.

    Attributes:
        metrics: Loss and error of the epoch so far.
        num_steps: Steps of the epoch so far.
        num_images: Images in them, in all processes.
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
        clip_grad: float | None = None,
        average: ExponentialMovingAverage | None = None,
        graphs: Graphs | None = None,
    ):
        device = next(model.parameters()).device
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.processes = processes
        self.accum_steps = accum_steps
        self.label_smoothing = label_smoothing
        self.clip_grad = clip_grad
        self.average = average
        self.metrics = RunningMetrics(device)
        self.num_steps = self.num_images = 0
        self._skipped = torch.zeros((), device=device)  # steps whose gradients overflowed, since `begin_epoch`
        self._take = CapturedSteps(self._step, graphs, discard=self._discard_step) if graphs else self._step
        optimizer.register_step_pre_hook(self._set_found_inf)
        optimizer.register_step_post_hook(self._update_average)

    def begin_epoch(self, *, num_steps: int = 0, num_images: int = 0) -> None:
        """Put the model into training mode, and begin metrics and the number of skipped steps anew.

        Args:
            num_steps: Steps of the epoch that are taken already. `epoch_tensors` are then to be put back as they were.
            num_images: Images in these steps, in all processes.
        """
        self.model.train()
        self.metrics.reset()
        self._skipped.zero_()
        self.num_steps, self.num_images = num_steps, num_images

    def epoch_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the steps of an epoch change, beside those of model, optimizer and scaler."""
        return {"batches": self.metrics.batches, SUMS: self.metrics.sums, "skipped": self._skipped}

    def take(self, images: Tensor, labels: Tensor, size: int) -> None:
        """Take a step, and add loss and error to the metrics. No step is taken after a loss that is NaN or infinite.

        Args:
            images: This process's part of the batch, (n, C, H, W); may be empty where there are several processes.
            labels: Its labels, (n,), or the probability of each class, (n, classes).
            size: Images of the batch in all processes.
        """
        self._take(images, labels, size)
        self.num_steps += 1
        self.num_images += size

    def _step(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.optimizer.zero_grad()
        self.metrics.begin_batch()
        parts = zip(images.tensor_split(self.accum_steps), labels.tensor_split(self.accum_steps), strict=True)
        for i, (part, its_labels) in enumerate(parts, start=1):
            # With several processes, each of them must take part in every collective operation.
            if len(part) or self.processes.world_size > 1:
                with self._gradient_exchange(is_last=i == self.accum_steps):
                    self._add_gradient(part, its_labels, size)
        self.metrics.all_reduce_failure(self.processes)
        self._clip_gradient()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _add_gradient(self, images: Tensor, labels: Tensor, size: int) -> None:
        """Add the gradient of a micro-batch to that of the batch: forward pass, loss, backward pass."""
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        self.metrics.add(loss.detach(), logits, labels)
        # DistributedDataParallel averages over all processes, where the sum is needed.
        self.scaler.scale(loss * (self.processes.world_size / size)).backward()

    def _gradient_exchange(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients in the backward pass of the last micro-batch only."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _set_found_inf(self, optimizer: Any, *_: Any) -> None:
        """Skip the step if the scaler has found infinite gradients or the metrics have found a numerical failure."""
        if self.scaler.is_enabled():
            self._skipped += optimizer.found_inf
            optimizer.found_inf = torch.maximum(optimizer.found_inf, self.metrics.failed)
        else:
            optimizer.found_inf = self.metrics.failed

    def _clip_gradient(self) -> None:
        """Shorten the gradient, which all processes share by now, if it is longer than `clip_grad`."""
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)  # or the limit would be one for the scaled gradient
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.clip_grad)

    def _update_average(self, optimizer: Any, *_: Any) -> None:
        """Average the weights, as long as it is known whether the step was skipped."""
        if self.average:
            self.average.update(optimizer.found_inf)

    def _discard_step(self) -> None:
        """Forget in Python a step that was begun and not finished, and that has changed nothing on the device."""
        self.optimizer.zero_grad()
        for name in ("grad_scale", "found_inf"):
            vars(self.optimizer).pop(name, None)
        if self.scaler.is_enabled():  # the old one may count the step as taken
            state = self.scaler.state_dict()
            self.scaler = torch.amp.GradScaler(self.metrics.sums.device.type)
            self.scaler.load_state_dict(state)

    def check_scale(self) -> None:
        """Wait for the device, and make sure that the scale of the loss is still useful.

        Raises:
            EndlessOverflow: If it has become too small.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise EndlessOverflow

    def restore_scale(self, state: dict[str, Any]) -> None:
        """Continue with the scale of a checkpoint; with a disabled scaler there is nothing to do.

        How the scale grows and shrinks is this program's choice, not the checkpoint's.

        Args:
            state: state_dict of a scaler, which may hold anything.

        Raises:
            ValueError: If it is not the state of a scaler.
        """
        if not self.scaler.is_enabled():
            return
        own = self.scaler.state_dict()
        scale, steps = state.get("scale"), state.get("_growth_tracker")
        if type(scale) is not float or not 0 < scale <= LARGEST_SCALE:
            raise ValueError(f"the scale of its loss is {short_repr(scale)}")
        if type(steps) is not int or not 0 <= steps < own["growth_interval"]:
            raise ValueError(f"the number of steps since its scale changed is {short_repr(steps)}")
        self.scaler.load_state_dict(own | {"scale": scale, "_growth_tracker": steps})

    def num_skipped(self) -> int | None:
        """Wait for the device, and return the number of skipped steps of the epoch; None except in fp16."""
        return int(self._skipped) if self.scaler.is_enabled() else None
