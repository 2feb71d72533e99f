"""The progress of a run: a bar during an epoch, and a line after it."""

import time

from train.metrics import Metrics
from train.run.history import Row, chooses_average
from train.terminal import Bar

REFRESH_SECONDS = 1.0


class EpochBar(Bar):
    """A bar of an epoch of training, with averages that are read from the device once a second.

    Args:
        epoch: The epoch, counted from 1.
        n_epochs: Epochs of the whole run.
        num_images: Images of the epoch.
        learning_rate: Learning rate of the epoch, shown after the bar.
        num_done: Images that were trained on before the run was stopped in this epoch.
    """

    def __init__(self, epoch: int, n_epochs: int, num_images: int, learning_rate: float, *, num_done: int = 0):
        super().__init__(f"epoch {epoch}/{n_epochs}", num_images, initial=num_done)
        self.epoch = epoch
        self.learning_rate = learning_rate
        self.next_read = time.monotonic() + REFRESH_SECONDS

    def is_due(self) -> bool:
        """Return whether a second has passed, so that the metrics are to be read from the device again."""
        return time.monotonic() >= self.next_read

    def show(self, metrics: Metrics) -> None:
        """Show the averages of the epoch so far."""
        self.note(f"loss {metrics.loss:.4f}, error {metrics.error:.2%}, lr {self.learning_rate:g}")
        self.next_read = time.monotonic() + REFRESH_SECONDS


def epoch_line(row: Row, *, n_epochs: int, is_chosen: bool) -> str:
    """Return the line that is printed after an epoch, with a star at the weights that are the best so far."""
    parts = [
        f"epoch {row.epoch:>{len(str(n_epochs))}}/{n_epochs}",
        f"train loss {row.train_loss:.4f} error {row.train_error:7.2%}",
    ]
    averaged = chooses_average(row, has_average=False)
    stars = {False: "  ", True: " *"}
    if row.valid_loss is not None:
        star = stars[is_chosen and not averaged]
        parts.append(f"valid loss {row.valid_loss:.4f} error {row.valid_error:7.2%}{star}")
    if row.ema_valid_loss is not None:
        star = stars[is_chosen and averaged]
        parts.append(f"EMA loss {row.ema_valid_loss:.4f} error {row.ema_valid_error:7.2%}{star}")
    parts.append(f"lr {row.learning_rate:<6g} {row.images_per_second:>7,.0f} images/s  {row.seconds:>5.1f} s")
    if row.skipped_steps:
        parts.append(f"{row.skipped_steps} steps skipped (overflow in fp16)")
    return "  ".join(parts)
