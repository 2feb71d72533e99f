"""The training loop."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train import runtime
from train.errors import RunError
from train.metrics import NonFiniteLoss, RunningMetrics
from train.optim import learning_rate, set_learning_rate
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.progress import EpochBar, epoch_line
from train.replicas import Replicas
from train.restore import restore
from train.run.checkpoint import Checkpoint
from train.run.history import Metrics, Row, best_row
from train.run.run_folder import RunFolder
from train.signals import Stop, after_the_step
from train.step import EndlessOverflow, Stepper
from train.terminal import Bar, say

Batch = tuple[Tensor, Tensor, int]


class BatchSource(Protocol):
    """Batches on the training device: images (n, 3, H, W), labels (n,), and the size of the whole batch.

    Where several processes share a run, n images are this process's part of it, maybe none.
    """

    num_images: int  # in all processes

    def __iter__(self) -> Generator[Batch]:
        """All images once, in a fixed order, not augmented."""
        ...

    def epoch(self, epoch: int) -> Generator[Batch]:
        """All images once, shuffled and augmented as a function of the epoch."""
        ...


@dataclass(frozen=True)
class Loaders:
    """What a run reads; `valid` is None where all training images are trained on."""

    train: BatchSource
    valid: BatchSource | None
    test: BatchSource

    def describe(self, *, limit: int | None = None) -> str:
        """Say how many images are trained, validated and tested on, and whether that is for --limit_batches."""
        num_valid = self.valid.num_images if self.valid else 0
        dry = "" if limit is None else f", a dry run by --limit_batches {limit}"
        num_train, num_test = self.train.num_images, self.test.num_images
        return f"{num_train:,} training, {num_valid:,} validation and {num_test:,} test images{dry}"


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and its learning rate in each epoch; see `learning_rate`."""

    n_epochs: int
    lr: float
    name: str = "step"
    warmup_epochs: int = 0

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch from 1 on."""
        settings = {"schedule": self.name, "warmup_epochs": self.warmup_epochs}
        return learning_rate(epoch, n_epochs=self.n_epochs, lr=self.lr, **settings)


def train_one_epoch(stepper: Stepper, batches: Generator[Batch], bar: EpochBar, stop: Stop) -> Metrics:
    """Take one step for each batch; return loss and error of all processes as they were on the way.

    The device runs ahead of this loop. It is waited for once a second, for the display, and at the end. A loss that is
    NaN or infinite stops all steps from that batch on, on the device, and is reported when the sums are read next.

    Args:
        stepper: What takes the steps.
        batches: At least one. Closed at the end, whatever happens: threads may be at work for it.
        bar: What the user sees.
        stop: Checked after each step.

    Raises:
        NonFiniteLoss: If a loss was NaN or infinite. Parameters are as before that batch; running statistics are not.
        EndlessOverflow: If gradients do not fit into fp16 any more.
        Stopped: If a signal has come.
    """
    stepper.begin_epoch()
    metrics = None
    with closing(batches):
        for images, labels, size in batches:
            metrics = metrics or RunningMetrics(labels.device)
            stepper.take(images, labels, size, metrics)
            bar.advance(size)
            if stop.check(f"in epoch {bar.epoch}, batch {metrics.batches}", due=bar.is_due()):
                bar.show(metrics.read())
                stepper.check_scale()
    metrics.gather(stepper.processes)
    stepper.check_scale()
    return metrics.read()


@torch.no_grad()
def evaluate(
    model: nn.Module, source: BatchSource, bar: Bar, stop: Stop, processes: ProcessGroup = SINGLE_PROCESS
) -> Metrics:
    """Return loss and error of all processes' images in eval mode. The device is waited for once, at the end.

    Args:
        model: Maps images (n, 3, H, W) to logits (n, classes).
        source: At least one batch, and the same number in each process.
        bar: What the user sees.
        stop: Checked after each batch.
        processes: The processes of the run.

    Raises:
        NonFiniteLoss: If a loss is NaN or infinite.
        Stopped: If a signal has come.
    """
    model.eval()
    metrics = None
    with closing(iter(source)) as batches:
        for images, labels, size in batches:
            metrics = metrics or RunningMetrics(labels.device)
            metrics.begin_batch()
            if len(images):
                logits = model(images)
                metrics.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
            bar.advance(size)
            stop.check(f"in {bar.name}, batch {metrics.batches}")
    metrics.gather(processes)
    return metrics.read()


def fit(
    replicas: Replicas,
    stepper: Stepper,
    loaders: Loaders,
    folder: RunFolder,
    checkpoint: Checkpoint,
    *,
    schedule: Schedule,
    seed: int,
) -> float:
    """Train until the last epoch, from where the checkpoint stands, and return the chosen weights' test error.

    After each epoch the folder holds all that is needed to go on.

    Args:
        replicas: A network and what is called in its place.
        stepper: Trains `replicas.training`.
        loaders: What to train, validate and test on.
        folder: Where everything is written, by the first process.
        checkpoint: Where the run stands; an empty one for a new run. Its contents are put into network and optimizer.
        schedule: Of the whole run, epochs that are done included.
        seed: Dropout is a function of this and the epoch.

    Raises:
        UserError: If the checkpoint is of another network.
        RunError: If a loss is NaN or infinite, or the folder cannot be written. The folder stands at the last epoch
            that was finished.
        Stopped: If a signal has come. The batch in hand is finished, of training, validation or test, or what is
            written after an epoch. The folder stands at the last epoch that was written.
    """
    processes, n_epochs = stepper.processes, schedule.n_epochs
    if checkpoint.epoch:
        restore(replicas.network, stepper, checkpoint, folder.path)
        folder.write_products(checkpoint)
    with after_the_step(processes) as stop:
        for epoch in range(checkpoint.epoch + 1, n_epochs + 1):
            runtime.seed_epoch(seed, epoch, processes)
            set_learning_rate(stepper.optimizer, schedule.rate(epoch))
            row = _run_epoch(replicas, stepper, loaders, epoch, n_epochs, stop)
            checkpoint.rows.append(row)
            _note_state(checkpoint, replicas.network, stepper)
            is_chosen = best_row(checkpoint.rows) is row
            if is_chosen:
                checkpoint.chosen = runtime.copy_to_cpu(checkpoint.network)
            folder.save(checkpoint)
            say(epoch_line(row, n_epochs=n_epochs, is_chosen=is_chosen))
            stop.check(f"after epoch {epoch}")
        return _finish(replicas, loaders.test, folder, checkpoint, stop, processes)


def _note_state(checkpoint: Checkpoint, network: nn.Module, stepper: Stepper) -> None:
    checkpoint.network = network.state_dict()
    checkpoint.optimizer = stepper.optimizer.state_dict()
    checkpoint.scaler = stepper.scaler.state_dict()


def _run_epoch(replicas: Replicas, stepper: Stepper, loaders: Loaders, epoch: int, n_epochs: int, stop: Stop) -> Row:
    """Train and validate once."""
    rate = stepper.optimizer.param_groups[0]["lr"]
    device = next(replicas.network.parameters()).device
    runtime.reset_peak_memory(device)
    start = time.perf_counter()
    part = "training"
    try:
        with EpochBar(epoch, n_epochs, loaders.train.num_images, rate) as bar:
            train = train_one_epoch(stepper, loaders.train.epoch(epoch), bar, stop)
        train_seconds = time.perf_counter() - start
        stepper.processes.broadcast(replicas.network.buffers())
        part = "validation"
        name = f"validation {epoch}/{n_epochs}"
        valid = _measure(replicas, loaders.valid, name, stop, stepper.processes) if loaders.valid else None
    except NonFiniteLoss as error:
        raise _failure(f"the {part} loss became NaN or infinite", epoch, rate, error.batch) from error
    except EndlessOverflow as error:
        raise _failure("the gradients do not fit into fp16 however small the loss is scaled", epoch, rate) from error
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
        skipped_steps=stepper.num_skipped(),
    )


def _measure(replicas: Replicas, source: BatchSource, name: str, stop: Stop, processes: ProcessGroup) -> Metrics:
    """Evaluate, with a bar of this name."""
    with Bar(name, source.num_images) as bar:
        return evaluate(replicas.evaluation, source, bar, stop, processes)


def _failure(what: str, epoch: int, rate: float, batch: int | None = None) -> RunError:
    where = f"epoch {epoch}, batch {batch}" if batch else f"epoch {epoch}"
    return RunError(
        f"{what} in {where}, at learning rate {rate:g}; nothing of this epoch was saved; try a smaller --lr or "
        "--warmup_epochs in a new folder",
        in_all_processes=True,
    )


def _finish(
    replicas: Replicas,
    test: BatchSource,
    folder: RunFolder,
    checkpoint: Checkpoint,
    stop: Stop,
    processes: ProcessGroup,
) -> float:
    """Measure the test error of the chosen weights, once, and write it down.

    The checkpoint keeps the weights of the last epoch, so that a run can be made longer. If a signal stops it, nothing
    is written, and a run that goes on measures again.
    """
    checkpoint.network = runtime.copy_to_cpu(replicas.network.state_dict())
    replicas.network.load_state_dict(checkpoint.chosen)
    try:
        error = _measure(replicas, test, "final test", stop, processes).error
    except NonFiniteLoss as failure:
        raise RunError(
            f"the test loss is NaN or infinite in batch {failure.batch}; see {folder.path}", in_all_processes=True
        ) from failure
    checkpoint.rows[-1].test_error = error
    folder.save(checkpoint)
    return error
