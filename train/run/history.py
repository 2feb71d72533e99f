"""What happened in each epoch: the rows of results.csv, and which epoch's weights are chosen."""

import csv
import io
import re
import typing
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LARGEST = 3.5e38  # no number of a run is larger: losses come from 32 bits


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
        skipped_steps: Whose gradients overflowed in fp16; None in other precisions.
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

    def is_valid(self) -> bool:
        """Whether each value is of its field's type, and in the range of what it measures."""
        return all(
            type(value) in _kinds(field) and (value is None or 0 <= value <= _highest(field))
            for field, value in ((field, getattr(self, field.name)) for field in fields(self))
        )


def why_no_run(rows: Sequence[Row]) -> str:
    """Say why some rows are not those of a run, from its first epoch on; nothing if they are."""
    if not all(row.is_valid() and row.epoch == epoch for epoch, row in enumerate(rows, start=1)):
        return "its epochs are not those of a run"
    if len({value is None for row in rows for value in (row.valid_loss, row.valid_error)}) > 1:
        return "valid_loss and valid_error are empty in some places only"
    if any(row.test_error is not None for row in rows[:-1]):
        return "it has a test error before the last epoch"
    return ""


def _kinds(field: Field) -> tuple[type, ...]:
    return typing.get_args(field.type) or (field.type,)


def _highest(field: Field) -> float:
    return 1 if field.name.endswith("_error") else LARGEST


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


def from_csv(text: str) -> list[Row]:
    """Read what `to_csv` wrote. The text may come from anywhere; columns of other names are left out.

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
    if len({value is None for row in rows for value in (row.valid_loss, row.valid_error)}) > 1:
        raise ValueError("valid_loss and valid_error are empty in some places only")
    return rows


def _check_header(header: list[str]) -> list[str]:
    for field in fields(Row):
        found = header.count(field.name)
        if found != 1:
            raise ValueError(f"line 1 names the column {field.name} {'twice' if found else 'nowhere'}")
    return header


def _read_row(cells: dict[str, str], line: int, *, expected: int) -> Row:
    row = Row(**{field.name: _read_cell(cells[field.name], field, line) for field in fields(Row)})
    if row.epoch != expected:
        raise ValueError(f"line {line} has epoch {row.epoch}, but must have {expected}")
    return row


def _read_cell(cell: str, field: Field, line: int) -> float | None:
    """A number of one column, None for an empty cell where that is allowed."""
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
