"""The history of a run: the rows of results.csv, and which epoch's weights are chosen."""

import csv
import io
import re
import typing
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

AVERAGED = ("ema_valid_loss", "ema_valid_error")  # columns that only runs with averaged weights have
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LARGEST = 3.5e38  # no number of a run is larger: losses come from 32 bits


@dataclass
class Row:
    """One epoch. The fields are the columns of results.csv in their order; None is an empty cell.

    Attributes:
        epoch: The epoch, counted from 1.
        train_loss: Average training loss over the epoch, while the weights change and dropout is on.
        train_error: Fraction of training images classified wrongly, over the same epoch. Of a mixture of two images the
            class with the larger share is right.
        valid_loss: Average validation loss after the epoch; None without validation images.
        valid_error: Fraction of validation images classified wrongly; None without validation images.
        test_error: Fraction of test images that the chosen weights classify wrongly; only in the last row of a
            finished run.
        learning_rate: Learning rate of the epoch.
        seconds: Duration of the epoch with validation.
        images_per_second: Training images divided by the seconds of training alone.
        peak_memory_mb: Largest memory in use, in MB of 10^6 bytes; see `runtime.peak_memory`.
        skipped_steps: Number of steps whose gradients overflowed in fp16; None in other precisions.
        ema_valid_loss: Average validation loss of the averaged weights (EMA) after the epoch; None without them.
        ema_valid_error: Fraction of validation images that the averaged weights classify wrongly; None without them.
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
    skipped_steps: int | None = None
    ema_valid_loss: float | None = None
    ema_valid_error: float | None = None

    @property
    def kept_error(self) -> float | None:
        """Validation error of the weights that are kept of the epoch, see `chooses_average`."""
        return self.ema_valid_error if chooses_average(self, has_average=False) else self.valid_error

    @property
    def kept_loss(self) -> float | None:
        """Validation loss of the same weights."""
        return self.ema_valid_loss if chooses_average(self, has_average=False) else self.valid_loss

    def is_valid(self) -> bool:
        """Return whether each value has the type of its field, and lies in the range of its quantity."""
        return all(
            type(value) in _kinds(field) and (value is None or 0 <= value <= _highest(field))
            for field, value in ((field, getattr(self, field.name)) for field in fields(self))
        )


def why_no_run(rows: Sequence[Row]) -> str:
    """Say why rows cannot be those of a run from its first epoch on; return an empty text if they can."""
    if not all(row.is_valid() and row.epoch == epoch for epoch, row in enumerate(rows, start=1)):
        return "its epochs are not those of a run"
    if reason := _why_gaps(rows):
        return reason
    if any(row.test_error is not None for row in rows[:-1]):
        return "it has a test error before the last epoch"
    return ""


def _why_gaps(rows: Sequence[Row]) -> str:
    for names in (("valid_loss", "valid_error"), AVERAGED):
        if len({getattr(row, name) is None for row in rows for name in names}) > 1:
            return f"{' and '.join(names)} are empty in some places only"
    if any(row.valid_error is None and row.ema_valid_error is not None for row in rows):
        return "it has an ema_valid_error without a valid_error"
    return ""


def _kinds(field: Field) -> tuple[type, ...]:
    return typing.get_args(field.type) or (field.type,)


def _highest(field: Field) -> float:
    return 1 if field.name.endswith("_error") else LARGEST


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the epoch whose weights are chosen; None if there are no epochs.

    It is the one with the lowest validation error, of equal ones the one with the lowest validation loss, of equal ones
    the first. Averaged weights count as well as those that the epoch has ended with. Without validation images it is
    the last epoch.
    """
    if not rows:
        return None
    if rows[-1].valid_error is None:
        return rows[-1]
    return min(rows, key=lambda row: (row.kept_error, row.kept_loss))


def chooses_average(row: Row, *, has_average: bool) -> bool:
    """Return whether it is the averaged weights of an epoch that are kept, if this epoch is chosen.

    They are if their validation error is lower, or is equal and their validation loss is lower. Without validation
    images they always are.

    Args:
        row: The epoch.
        has_average: Whether the run keeps an average, which a row without validation errors does not tell.
    """
    if row.valid_error is None:
        return has_average
    averaged: Any = (row.ema_valid_error, row.ema_valid_loss)
    return row.ema_valid_error is not None and averaged < (row.valid_error, row.valid_loss)


def to_record(row: Row) -> dict[str, Any]:
    """Return the values of an epoch by column. Columns of averaged weights are left out where there are none."""
    return {name: value for name, value in asdict(row).items() if name not in AVERAGED or value is not None}


def to_csv(rows: Sequence[Row]) -> str:
    """Return the text of results.csv. Numbers have all their digits, so that equal files mean equal runs."""
    text, records = io.StringIO(), [to_record(row) for row in rows]
    columns = [field.name for field in fields(Row)]
    columns = [name for name in columns if name not in AVERAGED or any(name in record for record in records)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """Read the text of results.csv. It may come from anywhere; columns with other names are left out.

    Raises:
        ValueError: If the text is no such table. The message names line and column, and says what is wrong.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = _check_header(next(lines, []))
        for cells in lines:
            if len(cells) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(cells)} cells, the header {len(header)}")
            rows.append(_read_row(dict(zip(header, cells, strict=True)), lines.line_num, expected=len(rows) + 1))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    if reason := _why_gaps(rows):
        raise ValueError(reason)
    return rows


def _check_header(header: list[str]) -> list[str]:
    for field in fields(Row):
        found = header.count(field.name)
        if found != 1 and (found or field.name not in AVERAGED):
            raise ValueError(f"line 1 names the column {field.name} {'twice' if found else 'nowhere'}")
    return header


def _read_row(cells: dict[str, str], line: int, *, expected: int) -> Row:
    values: dict[str, Any] = {field.name: _read_cell(cells.get(field.name, ""), field, line) for field in fields(Row)}
    row = Row(**values)
    if row.epoch != expected:
        raise ValueError(f"line {line} has epoch {row.epoch}, but must have {expected}")
    return row


def _read_cell(cell: str, field: Field, line: int) -> float | None:
    """Return the number in a cell of a column; None for an empty cell where that is allowed."""
    kinds = _kinds(field)
    if not cell and type(None) in kinds:
        return None
    value = float(cell) if NUMBER.fullmatch(cell) else -1.0
    highest = _highest(field)
    if not 0 <= value <= highest or (int in kinds and not value.is_integer()):
        kind = "a whole number" if int in kinds else "a number"
        shown = cell if len(cell) <= 20 else f"{cell[:20]}..."
        raise ValueError(f"line {line}: {field.name} is {shown!r}, but must be {kind} from 0 to {highest:g}")
    return int(value) if int in kinds else value
