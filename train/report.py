"""What a person sees while a run goes on: a bar inside an epoch and an evaluation, a line after an epoch, warnings."""

import sys
import time
from typing import Self

from tqdm import tqdm

from train.folder.history import Metrics, Row
from train.team import here

REFRESH_SECONDS = 1.0


def warn(message: str) -> None:
    """Write a line of warning to stderr, above a progress bar if there is one; only the first process does."""
    if here().is_first:
        tqdm.write(f"warning: {message}", file=sys.stderr)


class Bar:
    """A progress bar over images on stderr if that is a terminal; otherwise nothing is shown.

    Args:
        name: Stands before the bar.
        num_images: Of all of it.
        is_shown: Whether this is the process that speaks to the user.
    """

    def __init__(self, name: str, num_images: int, *, is_shown: bool = True):
        self.name = name
        self.bar = tqdm(
            desc=name,
            total=num_images,
            unit=" images",
            leave=False,
            dynamic_ncols=True,
            disable=not (is_shown and sys.stderr.isatty()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def advance(self, num_images: int) -> None:
        """Count images that were handed to the device, which is not waited for."""
        self.bar.update(num_images)


class EpochBar(Bar):
    """A bar of an epoch of training, with averages that are read from the device once a second.

    Args:
        epoch: From 1.
        n_epochs: Of the whole run.
        num_images: In the epoch.
        learning_rate: Shown behind the bar.
        is_shown: Whether this is the process that speaks to the user.
    """

    def __init__(self, epoch: int, n_epochs: int, num_images: int, learning_rate: float, *, is_shown: bool = True):
        super().__init__(f"epoch {epoch}/{n_epochs}", num_images, is_shown=is_shown)
        self.epoch = epoch
        self.learning_rate = learning_rate
        self.next_read = time.monotonic() + REFRESH_SECONDS

    def is_due(self) -> bool:
        """Whether it is time to read the metrics from the device again, once a second."""
        return time.monotonic() >= self.next_read

    def show(self, metrics: Metrics) -> None:
        """Show the averages of the epoch so far."""
        self.bar.set_postfix_str(f"loss {metrics.loss:.4f}, error {metrics.error:.2%}, lr {self.learning_rate:g}")
        self.next_read = time.monotonic() + REFRESH_SECONDS


def epoch_line(row: Row, *, n_epochs: int, is_chosen: bool) -> str:
    """One line about a finished epoch."""
    parts = [
        f"epoch {row.epoch:>{len(str(n_epochs))}}/{n_epochs}",
        f"train loss {row.train_loss:.4f} error {row.train_error:7.2%}",
    ]
    if row.valid_loss is not None:
        parts.append(f"valid loss {row.valid_loss:.4f} error {row.valid_error:7.2%}{' *' if is_chosen else '  '}")
    parts.append(f"lr {row.learning_rate:<6g} {row.images_per_second:>7,.0f} images/s  {row.seconds:>5.1f} s")
    if row.skipped_steps:
        parts.append(f"{row.skipped_steps} steps skipped (overflow in fp16)")
    return "  ".join(parts)
