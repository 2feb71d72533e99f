"""The training loop.

`train_one_epoch` hands each batch to `Stepper.take`. There, `Stepper._step` runs the forward and the backward pass, in
`Stepper._add_gradient`, and lets the optimizer take a step.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
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
from train.restore import collect, is_finite, processes_inside_epoch, restore
from train.run.checkpoint import Checkpoint
from train.run.history import Row, best_row, chooses_average
from train.run.run_folder import RunFolder
from train.run.unfinished_epoch import UnfinishedEpoch
from train.signals import GracefulStop, Stopped
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

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Generator[Batch]:
        """Yield all images once, shuffled and augmented as a function of the epoch, from a batch on."""
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


class Due(IntEnum):
    """What is to be done after a step. Each includes those before it."""

    NOTHING = 0
    NUMBERS = 1
    CHECKPOINT = 2


@dataclass
class Autosave:
    """Saves a run inside its epochs from time to time; by default never.

    Attributes:
        seconds: From one time to the next, and from the beginning of the epoch to the first.
        save: Saves the run after the last step.
    """

    seconds: float = math.inf
    save: Callable[[], None] = lambda: None
    last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Return whether the time has come in this process."""
        return time.monotonic() >= self.last + self.seconds

    def __call__(self) -> None:
        """Save the run."""
        self.save()
        self.last = time.monotonic()


def train_one_epoch(
    stepper: Stepper,
    batches: Generator[Batch],
    bar: EpochBar,
    stop: GracefulStop,
    autosave: Autosave | None = None,
    *,
    is_resumed: bool = False,
) -> Metrics:
    """Take one step for each batch; return loss and error over all processes while the weights were changing.

    The device runs ahead of this loop, which waits for it once a second, to update the bar, and at the end. A loss that
    is NaN or infinite stops all further steps on the device itself, and is reported when the metrics are read next.

    Args:
        stepper: Takes the steps.
        batches: At least one batch, unless the epoch is resumed. The generator is closed in any case, since threads may
            be working for it.
        bar: The progress bar.
        stop: Checked after each step.
        autosave: Saves the run between two steps.
        is_resumed: Whether the stepper has been brought inside the epoch already, and the batches are those that are
            left.

    Raises:
        NonFiniteLoss: If a loss was NaN or infinite. Parameters are as they were when that batch came; running
            statistics are not.
        EndlessOverflow: If gradients do not fit into fp16 any more.
        Stopped: If a signal has come.
    """
    autosave = autosave or Autosave()
    if not is_resumed:
        stepper.begin_epoch()
    with closing(batches):
        for images, labels, size in batches:
            stepper.take(images, labels, size)
            bar.advance(size)
            due = Due.CHECKPOINT if autosave.is_due() else Due.NUMBERS if bar.is_due() else Due.NOTHING
            due_anywhere = stop.check(f"in epoch {bar.epoch}, batch {stepper.num_steps}", due=due)
            if due_anywhere >= Due.NUMBERS:
                bar.show(stepper.metrics.read())
                stepper.check_scale()
            if due_anywhere >= Due.CHECKPOINT:
                autosave()
    assert stepper.num_steps, "an epoch without batches"
    stepper.check_scale()
    return stepper.metrics.read(stepper.processes)


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
    return metrics.read(processes)


class Run:
    """A training run: a network, the data it is trained on, and the folder that everything is written to.

    Args:
        replicas: The network, and the modules that are called in its place.
        stepper: Trains `replicas.training`.
        loaders: The images to train, validate and test on.
        folder: The folder of the run.
        schedule: The schedule of the whole run, finished epochs included.
        seed: Dropout is a function of this and the epoch.
        checkpoint_minutes: From one checkpoint inside an epoch to the next. None: only where a signal stops the run.
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
        checkpoint_minutes: float | None = None,
    ):
        self.replicas = replicas
        self.stepper = stepper
        self.loaders = loaders
        self.folder = folder
        self.schedule = schedule
        self.seed = seed
        self.average = stepper.average
        self.autosave_seconds = 60 * checkpoint_minutes if checkpoint_minutes else math.inf
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
            NumericalFailure: If a loss is NaN or infinite. The folder stands at the last checkpoint.
            RunError: If the folder cannot be written. It stands at the last checkpoint.
            Stopped: If a signal has come. The current batch is finished, or the files after an epoch are, and the
                folder holds all steps that were taken.
        """
        network, n_epochs = self.replicas.network, self.schedule.n_epochs
        if not checkpoint.is_empty:
            restore(network, self.stepper, checkpoint, self.folder.path)
        if checkpoint.rows:
            self.folder.write_products(checkpoint)
        runtime.reset_peak_memory(self.device)
        with self.stop:
            for epoch in range(checkpoint.epoch + 1, n_epochs + 1):
                row = self.run_epoch(epoch, checkpoint)
                checkpoint.rows.append(row)
                checkpoint.unfinished = None
                collect(checkpoint, network, self.stepper)
                is_chosen = best_row(checkpoint.rows) is row
                if is_chosen:
                    checkpoint.chosen = self.weights_of(row)
                self.folder.save(checkpoint)
                say(epoch_line(row, n_epochs=n_epochs, is_chosen=is_chosen))
                self.stop.check(f"after epoch {epoch}", now=True)
            test_error = self.finish(checkpoint)
            self.stop.check("after the final test", now=True)
            return test_error

    def run_epoch(self, epoch: int, checkpoint: Checkpoint) -> Row:
        """Train and validate once, or do what is left of it.

        Args:
            epoch: The epoch, counted from 1.
            checkpoint: The state of the run before it, or inside it. It is saved again between two steps, and after the
                last one if a signal comes.

        Raises:
            NumericalFailure: If a loss is NaN or infinite, or gradients do not fit into fp16 any more.
            Stopped: If a signal has come.
        """
        unfinished = checkpoint.unfinished
        rate = unfinished.learning_rate if unfinished else self.schedule.rate(epoch)
        set_learning_rate(self.stepper.optimizer, rate)
        self._begin_random_numbers(epoch, unfinished)
        start = time.perf_counter() - (unfinished.seconds if unfinished else 0)
        train_seconds = 0.0
        part = "training"

        def save() -> None:
            self._save_inside(checkpoint, rate, train_seconds or time.perf_counter() - start)

        try:
            with _saved_if_stopped(save):
                train = self.train(epoch, rate, unfinished, Autosave(self.autosave_seconds, save))
                train_seconds = time.perf_counter() - start
                # Each process has running statistics of its own; those of the main process are saved.
                self.processes.broadcast(self.replicas.network.buffers())
                if self.average:
                    self.processes.broadcast(self.average.buffers().values())
                part = "validation"
                valid = self.validate(epoch)
                averaged = self.validate_average(epoch)
        except NonFiniteLoss as error:
            raise _failure(f"the {part} loss became NaN or infinite", epoch, rate, error.batch) from error
        except NonFiniteState as error:
            reason = "weights, running statistics or momentum became NaN or infinite"
            raise _failure(reason, epoch, rate, self.stepper.num_steps) from error
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

    def train(self, epoch: int, rate: float, unfinished: UnfinishedEpoch | None, autosave: Autosave) -> Metrics:
        """Train on all training images once, or on those that are left of an unfinished epoch."""
        steps, images = (unfinished.num_steps, unfinished.num_images) if unfinished else (0, 0)
        with EpochBar(epoch, self.schedule.n_epochs, self.loaders.train.num_images, rate, num_done=images) as bar:
            batches = self.loaders.train.epoch(epoch, first_batch=steps)
            return train_one_epoch(self.stepper, batches, bar, self.stop, autosave, is_resumed=unfinished is not None)

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

    def _begin_random_numbers(self, epoch: int, unfinished: UnfinishedEpoch | None) -> None:
        """Let dropout begin the random numbers of an epoch, or go on with them."""
        if unfinished is None:
            runtime.seed_epoch(self.seed, epoch, self.processes)
        elif not runtime.set_random_states(unfinished.of(self.processes).random, self.processes):
            runtime.seed_epoch(self.seed, epoch, self.processes, num_steps=unfinished.num_steps)

    def _save_inside(self, checkpoint: Checkpoint, rate: float, seconds: float) -> None:
        """Save the run after a step, before the epoch is finished. It waits for the device.

        Args:
            checkpoint: The last checkpoint.
            rate: Learning rate of the epoch.
            seconds: Duration of the steps of the epoch so far.

        Raises:
            NonFiniteLoss: If a loss was NaN or infinite; nothing is saved then, nor after any other error.
            EndlessOverflow: If gradients do not fit into fp16 any more.
            NonFiniteState: If the next loss would be NaN or infinite.
            RunError: If the system refuses, or the folder is no longer ours.
        """
        network, stepper = self.replicas.network, self.stepper
        stepper.metrics.read()
        stepper.check_scale()
        if not is_finite(network, stepper):
            raise NonFiniteState
        processes = processes_inside_epoch(network, stepper)
        collect(checkpoint, network, stepper)
        checkpoint.unfinished = UnfinishedEpoch(stepper.num_steps, stepper.num_images, rate, seconds, processes)
        self.folder.save(checkpoint)

    def _measure(self, source: BatchSource, name: str) -> Metrics:
        """Evaluate the network on some images, with a progress bar of this name."""
        with Bar(name, source.num_images) as bar:
            return evaluate(self.replicas.evaluation, source, bar, self.stop, self.processes)


class NonFiniteState(Exception):
    """What a step has left is NaN or infinite."""


@contextmanager
def _saved_if_stopped(save: Callable[[], None]) -> Iterator[None]:
    """Save the run if a signal stops it in this context."""
    try:
        yield
    except Stopped:
        save()
        raise


def _failure(reason: str, epoch: int, rate: float, batch: int | None = None) -> NumericalFailure:
    where = f"epoch {epoch}, batch {batch}" if batch else f"epoch {epoch}"
    return NumericalFailure(
        f"{reason} in {where}, at learning rate {rate:g}; the folder stays at its last checkpoint; try a smaller "
        "--lr or --warmup_epochs in a new folder"
    )
