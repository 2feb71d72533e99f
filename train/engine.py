"""The training loop.

`train_one_epoch` hands each batch to `Stepper.take`. There, `Stepper._step` runs the forward and the backward pass, in
`Stepper._add_gradient`, and lets the optimizer take a step.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train import runtime
from train.errors import NumericalFailure
from train.metrics import Metrics, NonFiniteLoss, RunningMetrics
from train.optim import FACTOR, MILESTONES, learning_rate, set_learning_rate
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.progress import EpochBar, epoch_line
from train.replicas import Replicas
from train.restore import restore
from train.run.checkpoint import Checkpoint
from train.run.history import Row, best_row, chooses_average
from train.run.run_folder import RunFolder
from train.signals import GracefulStop
from train.step import EndlessOverflow, Stepper
from train.terminal import Bar, say

Batch = tuple[Tensor, Tensor, int]


class BatchSource(Protocol):
    """Batches on the training device: images (n, C, H, W), labels (n,), and the size of the whole batch.

    In training, labels may be the probability of each class, (n, classes).

    Where several processes share a run, n images are this process's part of the batch, possibly none.
    """

    @property
    def num_images(self) -> int:
        """Images in all processes."""
        ...

    def __iter__(self) -> Generator[Batch]:
        """Yield all images once, in a fixed order and not augmented."""
        ...

    def epoch(self, epoch: int) -> Generator[Batch]:
        """Yield all images once, shuffled and augmented as a function of the epoch."""
        ...


@dataclass(frozen=True)
class Loaders:
    """The batches of a run.

    Attributes:
        train: Training images.
        valid: Validation images; None if all training images are trained on.
        test: Test images.
    """

    train: BatchSource
    valid: BatchSource | None
    test: BatchSource

    def describe(self, *, limit: int | None = None) -> str:
        """Say how many images are trained, validated and tested on.

        Args:
            limit: The number of --limit_batches, if this is a dry run.
        """
        num_valid = self.valid.num_images if self.valid else 0
        dry = "" if limit is None else f", a dry run by --limit_batches {limit}"
        num_train, num_test = self.train.num_images, self.test.num_images
        return f"{num_train:,} training, {num_valid:,} validation and {num_test:,} test images{dry}"


@dataclass(frozen=True)
class Schedule:
    """The length of a run, and its learning rate in each epoch; see `learning_rate`."""

    n_epochs: int
    lr: float
    name: str = "step"
    warmup_epochs: int = 0
    milestones: Sequence[float] = MILESTONES
    factor: float = FACTOR

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        return learning_rate(
            epoch,
            n_epochs=self.n_epochs,
            lr=self.lr,
            schedule=self.name,
            warmup_epochs=self.warmup_epochs,
            milestones=self.milestones,
            factor=self.factor,
        )


def train_one_epoch(stepper: Stepper, batches: Generator[Batch], bar: EpochBar, stop: GracefulStop) -> Metrics:
    """Take one step for each batch; return loss and error over all processes while the weights were changing.

    The device runs ahead of this loop, which waits for it once a second, to update the bar, and at the end. A loss that
    is NaN or infinite stops all further steps on the device itself, and is reported when the metrics are read next.

    Args:
        stepper: Takes the steps.
        batches: At least one batch. The generator is closed in any case, since threads may be working for it.
        bar: The progress bar.
        stop: Checked after each step.

    Raises:
        NonFiniteLoss: If a loss was NaN or infinite. Parameters are as they were when that batch came; running
            statistics are not.
        EndlessOverflow: If gradients do not fit into fp16 any more.
        Stopped: If a signal has come.
    """
    stepper.begin_epoch()
    metrics, number = stepper.metrics, 0
    with closing(batches):
        for number, (images, labels, size) in enumerate(batches, start=1):
            stepper.take(images, labels, size)
            bar.advance(size)
            if stop.check(f"in epoch {bar.epoch}, batch {number}", due=bar.is_due()):
                bar.show(metrics.read())
                stepper.check_scale()
    assert number, "an epoch without batches"
    metrics.all_reduce(stepper.processes)
    stepper.check_scale()
    return metrics.read()


@torch.no_grad()
def evaluate(
    model: nn.Module, source: BatchSource, bar: Bar, stop: GracefulStop, processes: ProcessGroup = SINGLE_PROCESS
) -> Metrics:
    """Return loss and error over all processes in eval mode. The device is waited for once, at the end.

    Args:
        model: Maps images (n, C, H, W) to logits (n, classes).
        source: At least one batch, and the same number in each process.
        bar: The progress bar.
        stop: Checked after each batch.
        processes: The processes of the run.

    Raises:
        NonFiniteLoss: If a loss is NaN or infinite.
        Stopped: If a signal has come.
    """
    model.eval()
    metrics = None
    with closing(iter(source)) as batches:
        for number, (images, labels, size) in enumerate(batches, start=1):
            metrics = metrics or RunningMetrics(labels.device)
            metrics.begin_batch()
            if len(images):
                logits = model(images)
                metrics.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
            bar.advance(size)
            stop.check(f"in {bar.name}, batch {number}")
    assert metrics is not None, "a data set without batches"
    metrics.all_reduce(processes)
    return metrics.read()


class Run:
    """A training run: a network, the data it is trained on, and the folder that everything is written to.

    Args:
        replicas: The network, and the modules that are called in its place.
        stepper: Trains `replicas.training`.
        loaders: The images to train, validate and test on.
        folder: The folder of the run.
        schedule: The schedule of the whole run, finished epochs included.
        seed: Dropout is a function of this and the epoch.
    """

    def __init__(
        self,
        replicas: Replicas,
        stepper: Stepper,
        loaders: Loaders,
        folder: RunFolder,
        *,
        schedule: Schedule,
        seed: int,
    ):
        self.replicas = replicas
        self.stepper = stepper
        self.loaders = loaders
        self.folder = folder
        self.schedule = schedule
        self.seed = seed
        self.average = stepper.average
        self.processes = stepper.processes
        self.device = next(replicas.network.parameters()).device
        self.stop = GracefulStop(self.processes)

    def fit(self, checkpoint: Checkpoint) -> float:
        """Train from a checkpoint to the last epoch, and return the test error of the chosen weights.

        After each epoch the folder holds everything that is needed to resume the run.

        Args:
            checkpoint: The state of the run, put into network and optimizer; an empty one for a new run.

        Raises:
            UserError: If the checkpoint is of another network.
            NumericalFailure: If a loss is NaN or infinite. The folder stands at the last finished epoch.
            RunError: If the folder cannot be written. It stands at the last finished epoch.
            Stopped: If a signal has come. The current batch is finished, or the files after an epoch are. The folder
                stands at the last epoch that was written.
        """
        network, n_epochs = self.replicas.network, self.schedule.n_epochs
        if checkpoint.epoch:
            restore(network, self.stepper, checkpoint, self.folder.path)
            self.folder.write_products(checkpoint)
        runtime.reset_peak_memory(self.device)
        with self.stop:
            for epoch in range(checkpoint.epoch + 1, n_epochs + 1):
                row = self.run_epoch(epoch)
                checkpoint.rows.append(row)
                checkpoint.network = network.state_dict()
                checkpoint.optimizer = self.stepper.optimizer.state_dict()
                checkpoint.scaler = self.stepper.scaler.state_dict()
                checkpoint.ema = self.average.state_dict() if self.average else {}
                is_chosen = best_row(checkpoint.rows) is row
                if is_chosen:
                    checkpoint.chosen = self.weights_of(row)
                self.folder.save(checkpoint)
                say(epoch_line(row, n_epochs=n_epochs, is_chosen=is_chosen))
                self.stop.check(f"after epoch {epoch}", now=True)
            return self.finish(checkpoint)

    def run_epoch(self, epoch: int) -> Row:
        """Train and validate once.

        Raises:
            NumericalFailure: If a loss is NaN or infinite, or gradients do not fit into fp16 any more.
            Stopped: If a signal has come.
        """
        rate = self.schedule.rate(epoch)
        runtime.seed_epoch(self.seed, epoch, self.processes)
        set_learning_rate(self.stepper.optimizer, rate)
        start = time.perf_counter()
        part = "training"
        try:
            train = self.train(epoch, rate)
            train_seconds = time.perf_counter() - start
            # Each process has running statistics of its own; those of the main process are saved.
            self.processes.broadcast(self.replicas.network.buffers())
            if self.average:
                self.processes.broadcast(self.average.buffers())
            part = "validation"
            valid = self.validate(epoch)
            averaged = self.validate_average(epoch)
        except NonFiniteLoss as error:
            raise _failure(f"the {part} loss became NaN or infinite", epoch, rate, error.batch) from error
        except EndlessOverflow as error:
            reason = "the gradients do not fit into fp16 however small the loss is scaled"
            raise _failure(reason, epoch, rate) from error
        return Row(
            epoch=epoch,
            train_loss=train.loss,
            train_error=train.error,
            valid_loss=valid.loss if valid else None,
            valid_error=valid.error if valid else None,
            test_error=None,
            learning_rate=rate,
            seconds=round(time.perf_counter() - start, 3),
            images_per_second=round(self.loaders.train.num_images / train_seconds, 1),
            peak_memory_mb=runtime.peak_memory(self.device),
            skipped_steps=self.stepper.num_skipped(),
            ema_valid_loss=averaged.loss if averaged else None,
            ema_valid_error=averaged.error if averaged else None,
        )

    def train(self, epoch: int, rate: float) -> Metrics:
        """Train on all training images once."""
        with EpochBar(epoch, self.schedule.n_epochs, self.loaders.train.num_images, rate) as bar:
            return train_one_epoch(self.stepper, self.loaders.train.epoch(epoch), bar, self.stop)

    def validate(self, epoch: int) -> Metrics | None:
        """Measure the network on the validation images; None if there are none."""
        if self.loaders.valid is None:
            return None
        return self._measure(self.loaders.valid, f"validation {epoch}/{self.schedule.n_epochs}")

    def validate_average(self, epoch: int) -> Metrics | None:
        """Measure the averaged weights on the validation images; None if there are none."""
        if self.average is None or self.loaders.valid is None:
            return None
        with self.average.in_network():
            return self._measure(self.loaders.valid, f"validation of EMA {epoch}/{self.schedule.n_epochs}")

    def weights_of(self, row: Row) -> dict[str, Tensor]:
        """Copy the weights that are kept of the epoch that has just ended: the network's, or the averaged ones."""
        kept = self.average if chooses_average(row, has_average=self.average is not None) else None
        with kept.in_network() if kept else nullcontext():
            return runtime.copy_to_cpu(self.replicas.network.state_dict())

    def finish(self, checkpoint: Checkpoint) -> float:
        """Measure the test error of the chosen weights, once, save it, and return it.

        The checkpoint keeps the weights of the last epoch, so that a run can be made longer. If a signal stops it,
        nothing is written, and a resumed run measures again.

        Raises:
            NumericalFailure: If the test loss is NaN or infinite.
            RunError: If the folder cannot be written.
            Stopped: If a signal has come.
        """
        network = self.replicas.network
        checkpoint.network = runtime.copy_to_cpu(network.state_dict())
        network.load_state_dict(checkpoint.chosen)
        try:
            error = self._measure(self.loaders.test, "final test").error
        except NonFiniteLoss as failure:
            raise NumericalFailure(
                f"the test loss is NaN or infinite in batch {failure.batch}; see {self.folder.path}"
            ) from failure
        checkpoint.rows[-1].test_error = error
        self.folder.save(checkpoint)
        return error

    def _measure(self, source: BatchSource, name: str) -> Metrics:
        """Evaluate the network on some images, with a progress bar of this name."""
        with Bar(name, source.num_images) as bar:
            return evaluate(self.replicas.evaluation, source, bar, self.stop, self.processes)


def _failure(reason: str, epoch: int, rate: float, batch: int | None = None) -> NumericalFailure:
    where = f"epoch {epoch}, batch {batch}" if batch else f"epoch {epoch}"
    return NumericalFailure(
        f"{reason} in {where}, at learning rate {rate:g}; nothing of this epoch was saved; try a smaller --lr or "
        "--warmup_epochs in a new folder"
    )
