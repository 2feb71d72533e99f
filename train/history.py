"""What happened in each epoch: the rows of results.csv, and which epoch's weights are chosen."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Metrics:
    """Averages over some images.

    Attributes:
        loss: Cross entropy, natural logarithm.
        error: Fraction of images that are classified wrongly.
    """

    loss: float
    error: float


@dataclass
class Row:
    """One epoch. The fields are the columns of results.csv, in their order; None is an empty cell.

    Attributes:
        epoch: From 1.
        train_loss: Average over the epoch, while the weights change and dropout is on.
        train_error: Fraction, likewise.
        valid_loss: At the end of the epoch; None without validation images.
        valid_error: Fraction, likewise.
        test_error: Fraction, of the chosen weights; in the last row of a finished run only.
        learning_rate: Of the epoch.
        seconds: Of the whole epoch, validation included.
        images_per_second: Training images over the seconds of training.
        peak_memory_mb: See `runtime.peak_memory`.
    """

    epoch: int
    train_loss: float
    train_error: float
    valid_loss: float | None
    valid_error: float | None
    test_error: float | None
    learning_rate: float
    seconds: float
    images_per_second: float
    peak_memory_mb: float | None

    def is_valid(self) -> bool:
        """Whether each value is of its field's type."""
        return all(isinstance(getattr(self, field.name), field.type) for field in fields(self))


def best_row(rows: Sequence[Row]) -> Row | None:
    """The epoch whose weights are chosen, None before the first.

    Lowest validation error; of equal ones the lowest validation loss; of equal ones the first. The last epoch where
    there are no validation images.
    """
    if not rows:
        return None
    if rows[-1].valid_error is None:
        return rows[-1]
    return min(rows, key=lambda row: (row.valid_error, row.valid_loss))


def to_csv(rows: Sequence[Row]) -> str:
    """The text of results.csv. Numbers have all their digits, so that equal files mean equal runs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
