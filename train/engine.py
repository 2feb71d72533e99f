"""The training loop."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train import runtime
from train.errors import RunError, UserError
from train.history import Metrics, Row, best_row
from train.optim import learning_rate, set_learning_rate
from train.report import EpochBar, epoch_line
from train.run import CONFIG, Checkpoint, RunFolder
from train.stops import Stop, after_the_step


class BatchSource(Protocol):
    """Batches (images (n, 3, H, W), labels (n,)) on the training device."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in a fixed order, not augmented."""
        ...

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, shuffled and augmented as a function of the epoch."""
        ...


@dataclass(frozen=True)
class Loaders:
    """What a run reads; `valid` is None where all training images are trained on."""

    train: BatchSource
    valid: BatchSource | None
    test: BatchSource

    def describe(self) -> str:
        """Say how many images are trained, validated and tested on."""
        num_valid = self.valid.num_images if self.valid else 0
        return f"{self.train.num_images:,} training, {num_valid:,} validation and {self.test.num_images:,} test images"


class NonFiniteLoss(Exception):
    """The loss of a batch, counted from 1, was NaN or infinite."""

    def __init__(self, batch: int):
        super().__init__(f"batch {batch}")
        self.batch = batch


class RunningMetrics:
    """Loss and error of the batches so far, summed on the device without waiting for it.

    It also remembers the first batch whose loss was NaN or infinite. From then on `failed` is 1.

    Args:
        device: Where the batches are.
    """

    def __init__(self, device: torch.device):
        self.images = 0
        self.batches = 0
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses, of wrong answers
        self.first_failure = torch.full((), math.inf, device=device)  # the batch

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (n, classes) and labels (n,)."""
        self.images += len(labels)
        self.batches += 1
        wrong = (logits.argmax(1) != labels).sum()
        self.sums += torch.stack([loss.double() * len(labels), wrong])
        here = torch.where(loss.isfinite(), math.inf, self.batches)
        self.first_failure = torch.minimum(self.first_failure, here)

    @property
    def failed(self) -> Tensor:
        """float32 (): 1 if a loss was NaN or infinite, else 0."""
        return self.first_failure.isfinite().float()

    def read(self) -> Metrics:
        """Wait for the device and return the averages.

        Raises:
            NonFiniteLoss: If a loss was NaN or infinite.
        """
        loss, wrong, first_failure = torch.cat([self.sums, self.first_failure[None]]).tolist()
        if math.isfinite(first_failure):
            raise NonFiniteLoss(int(first_failure))
        return Metrics(loss / self.images, wrong / self.images)


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    bar: EpochBar,
    stop: Stop,
) -> Metrics:
    """Take one step for each batch; return loss and error as they were on the way.

    The device runs ahead of this loop. It is waited for once a second, for the display, and at the end. A loss that is
    NaN or infinite stops all steps from that batch on, on the device, and is reported when the sums are read next.

    Args:
        model: Put into training mode.
        batches: At least one.
        optimizer: Has an attribute `found_inf`, as fused optimizers do.
        bar: What the user sees.
        stop: Checked after each step.

    Raises:
        NonFiniteLoss: If a loss was NaN or infinite. Parameters are as before that batch; running statistics are not.
        Stopped: If a signal has come.
    """
    model.train()
    metrics = None
    for images, labels in batches:
        metrics = metrics or RunningMetrics(labels.device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        metrics.add(loss, logits, labels)
        optimizer.found_inf = metrics.failed
        optimizer.step()
        bar.advance(len(labels))
        stop.check(f"in epoch {bar.epoch}, batch {metrics.batches}")
        if bar.is_due():
            bar.show(metrics.read())
    return metrics.read()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Return loss and error in eval mode.

    Raises:
        NonFiniteLoss: If a loss is NaN or infinite.
    """
    model.eval()
    metrics = None
    for images, labels in batches:
        metrics = metrics or RunningMetrics(labels.device)
        logits = model(images)
        metrics.add(F.cross_entropy(logits, labels), logits, labels)
    return metrics.read()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loaders: Loaders,
    folder: RunFolder,
    checkpoint: Checkpoint,
    *,
    n_epochs: int,
    lr: float,
    seed: int,
) -> float:
    """Train until epoch `n_epochs`, from where the checkpoint stands, and return the chosen weights' test error.

    After each epoch the folder holds all that is needed to go on.

    Args:
        model: A network, or its DataParallel wrapper.
        optimizer: Of the network's parameters.
        loaders: What to train, validate and test on.
        folder: Where everything is written.
        checkpoint: Where the run stands; an empty one for a new run. Its contents are put into network and optimizer.
        n_epochs: Of the whole run, those that are done included.
        lr: The initial learning rate.
        seed: Dropout is a function of this and the epoch.

    Raises:
        UserError: If the checkpoint is of another network.
        RunError: If a loss is NaN or infinite, or the folder cannot be written. The folder stands at the last epoch
            that was finished.
        Stopped: If a signal has come. The training step in hand is finished, or validation with what is written after
            it; the folder stands at the last epoch that was finished.
    """
    network = runtime.unwrapped(model)
    _restore(network, optimizer, checkpoint, folder)
    with after_the_step() as stop:
        for epoch in range(checkpoint.epoch + 1, n_epochs + 1):
            runtime.seed_epoch(seed, epoch)
            set_learning_rate(optimizer, learning_rate(epoch, n_epochs=n_epochs, lr=lr))
            row = _run_epoch(model, optimizer, loaders, epoch, n_epochs, stop)
            checkpoint.rows.append(row)
            checkpoint.network, checkpoint.optimizer = network.state_dict(), optimizer.state_dict()
            is_chosen = best_row(checkpoint.rows) is row
            if is_chosen:
                checkpoint.chosen = runtime.copy_to_cpu(network.state_dict())
            folder.save(checkpoint)
            print(epoch_line(row, n_epochs=n_epochs, is_chosen=is_chosen), flush=True)
            stop.check(f"after epoch {epoch}")
        return _finish(model, loaders.test, folder, checkpoint)


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, folder: RunFolder) -> None:
    """Put a checkpoint into network and optimizer, once it is known to be theirs; an empty one changes nothing.

    The folder's other files are then brought up to it.
    """
    if not checkpoint.epoch:
        return
    expected = {name: value.shape for name, value in network.state_dict().items()}
    for state in (checkpoint.network, checkpoint.chosen):
        if {name: getattr(value, "shape", None) for name, value in state.items()} != expected:
            raise UserError(f"the checkpoint in {folder.path} is of another network than its {CONFIG} says")
    network.load_state_dict(checkpoint.network)
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint in {folder.path} is of another optimizer: {error}") from error
    if not _has_all_buffers(optimizer):
        raise UserError(
            f"the checkpoint in {folder.path} is of another optimizer: its buffers are not those of momentum"
        )
    folder.write_products(checkpoint)


def _has_all_buffers(optimizer: torch.optim.Optimizer) -> bool:
    """Whether each parameter has the buffer that its momentum needs."""
    with_momentum = (weight for group in optimizer.param_groups if group["momentum"] for weight in group["params"])
    shapes = ((weight.shape, optimizer.state[weight].get("momentum_buffer")) for weight in with_momentum)
    return all(getattr(buffer, "shape", None) == shape for shape, buffer in shapes)


def _run_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loaders: Loaders, epoch: int, n_epochs: int, stop: Stop
) -> Row:
    """Train and validate once."""
    rate = optimizer.param_groups[0]["lr"]
    device = next(model.parameters()).device
    runtime.reset_peak_memory(device)
    start = time.perf_counter()
    part = "training"
    try:
        with EpochBar(epoch, n_epochs, loaders.train.num_images, rate) as bar:
            train = train_one_epoch(model, loaders.train.epoch(epoch), optimizer, bar, stop)
        train_seconds = time.perf_counter() - start
        part = "validation"
        valid = evaluate(model, loaders.valid) if loaders.valid else None
    except NonFiniteLoss as error:
        raise RunError(
            f"the {part} loss became NaN or infinite in epoch {epoch}, batch {error.batch}, at learning rate {rate:g}; "
            "nothing of this epoch was saved; try a smaller --lr in a new folder"
        ) from error
    return Row(
        epoch=epoch,
        train_loss=train.loss,
        train_error=train.error,
        valid_loss=valid.loss if valid else None,
        valid_error=valid.error if valid else None,
        test_error=None,
        learning_rate=rate,
        seconds=round(time.perf_counter() - start, 3),
        images_per_second=round(loaders.train.num_images / train_seconds, 1),
        peak_memory_mb=runtime.peak_memory(device),
    )


def _finish(model: nn.Module, test: BatchSource, folder: RunFolder, checkpoint: Checkpoint) -> float:
    """Measure the test error of the chosen weights, once, and write it down.

    The checkpoint keeps the weights of the last epoch, so that a run can be made longer.
    """
    network = runtime.unwrapped(model)
    checkpoint.network = runtime.copy_to_cpu(network.state_dict())
    network.load_state_dict(checkpoint.chosen)
    try:
        error = evaluate(model, test).error
    except NonFiniteLoss as failure:
        raise RunError(f"the test loss is NaN or infinite in batch {failure.batch}; see {folder.path}") from failure
    checkpoint.rows[-1].test_error = error
    folder.save(checkpoint)
    return error
