"""The record that a run, finished or not, keeps of itself: config.json and results.csv.

Anybody may have written these files, so nothing in them is trusted. Flags are read as plain values, and runs of other
versions of this program can be read too; `saved_run` is stricter, for commands that use the network of a run.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from commands.tables import plain
from train.errors import UserError
from train.run.config import CONFIG, RESULTS, read_config, read_small
from train.run.history import Row, best_row, chooses_average, from_csv

LARGEST_RESULTS = 50_000_000  # bytes, about 300,000 epochs
LEVELS = 3  # of folders below a named one in which runs are looked for
ATTEMPTS = 20  # to read several files between two epochs of a run

Contents = TypeVar("Contents")


@dataclass(frozen=True)
class RunRecord:
    """The record of a run, finished or not.

    Attributes:
        path: Folder of the run, as the user named it.
        flags: Plain values by flag, as config.json has them; unchecked, and some may be missing.
        n_epochs: Epochs of the whole run.
        parameters: Number of parameters of the network.
        rows: One for each epoch that is done, possibly none.
    """

    path: Path
    flags: dict[str, Any]
    n_epochs: int
    parameters: int
    rows: list[Row]

    @property
    def test_error(self) -> float | None:
        """Fraction of test images that the chosen weights misclassify; None until all epochs are done."""
        return self.rows[-1].test_error if self.rows else None

    def progress(self) -> str:
        """Say which epoch the chosen weights are from, and how many epochs are done."""
        best = best_row(self.rows)
        if best is None:
            return f"weights of an epoch that is not known, as there is no {RESULTS}"
        averaged = "averaged " if chooses_average(best, has_average=bool(self.flags.get("ema"))) else ""
        return f"{averaged}weights of epoch {best.epoch}, {len(self.rows)} of {self.n_epochs} epochs done"

    def verdict(self, error: float) -> str:
        """Say whether a test error measured now equals the recorded one, and why it may not."""
        if self.test_error is None:
            return "the run has recorded no test error yet"
        if self.test_error == error:
            return "the run recorded the same test error"
        limit = self.flags.get("limit_batches")
        if limit is not None:
            return f"the run recorded {self.test_error:.2%}, on few test images: it had --limit_batches {plain(limit)}"
        return (
            f"warning: the run recorded another test error, {self.test_error:.4%}, and now it is {error:.4%}; another "
            "device, version or batch size rounds differently, but a larger difference has another reason"
        )


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run. Nothing is written.

    Raises:
        UserError: If the folder holds no run, or one of its files is invalid.
    """
    config = read_config(folder)
    if config is None:
        raise UserError(f"{folder} holds no run: there is no {CONFIG} in it")
    flags = config["flags"]
    path = folder / CONFIG
    return RunRecord(
        path=folder,
        flags=flags,
        n_epochs=_whole_number(flags, "n_epochs", path),
        parameters=_whole_number(config, "parameters", path),
        rows=_read_results(folder),
    )


def read_with_record(folder: Path, read: Callable[[], Contents]) -> tuple[RunRecord, Contents]:
    """Read another file of a run together with the record that belongs to it, even while the run goes on.

    A run removes results.csv before it writes new weights. If the record is the same before and after the other file
    is read, then it belongs to this file.

    Args:
        folder: Folder of the run.
        read: Reads the other file; called again if an epoch has ended in between.

    Raises:
        UserError: If the folder holds no run, or one of its files is invalid.
    """
    for _ in range(ATTEMPTS):
        before, contents = read_record(folder), read()
        if read_record(folder) == before:
            return before, contents
    raise UserError(f"the run in {folder} writes its files faster than they can be read; try again when it has ended")


def read_records(folders: Sequence[Path]) -> tuple[list[RunRecord], list[UserError]]:
    """Read the records of several runs. A folder that is not a run stands for all runs in it.

    They are looked for down to three folders below it, and not inside of runs: `runs` stands for `runs/a/seed-1` too.

    Returns:
        The records, at least one, and an error for each folder that cannot be read as a run.

    Raises:
        UserError: If two of the folders are the same one, or no run can be read.
    """
    first: dict[str, Path] = {}
    runs: list[RunRecord] = []
    errors: list[UserError] = []
    for path in (path for folder in folders for path in _runs_in(folder)):
        same = first.setdefault(os.path.realpath(path), path)
        if same is not path:
            raise UserError(f"RUNS names one run twice: {same} and {path}")
        try:
            runs.append(read_record(path))
        except UserError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return runs, errors


def _read_results(folder: Path) -> list[Row]:
    """Read the rows of results.csv; none if there is no such file yet.

    Raises:
        UserError: If the file is invalid. The message names the line and what is wrong with it.
    """
    path = folder / RESULTS
    text = read_small(path, largest=LARGEST_RESULTS)
    try:
        return from_csv(text) if text is not None else []
    except ValueError as error:
        raise UserError(f"{path} is no table of epochs: {error}") from error


def _runs_in(folder: Path) -> list[Path]:
    """The folder if it is a run, else the runs in it. The folder itself if there are none."""
    return _runs_below(folder, levels=LEVELS) or [folder]


def _runs_below(folder: Path, *, levels: int) -> list[Path]:
    """The folder if it is a run, else the runs in it, numbers in their names in order of size."""
    try:
        if (folder / CONFIG).exists():
            return [folder]
        if not levels:
            return []
        with os.scandir(folder) as entries:
            inside = [folder / entry.name for entry in entries if entry.is_dir()]
    except OSError:  # if it was named, reading it raises this again, as one line
        return []
    return [run for path in sorted(inside, key=_by_number) for run in _runs_below(path, levels=levels - 1)]


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key by which seed-10 comes after seed-2."""
    parts = re.split("([0-9]+)", path.name)
    return [(int(part) if part.isdecimal() and len(part) < 100 else 0, part) for part in parts]


def _whole_number(values: dict[str, Any], name: str, path: Path) -> int:
    value = values.get(name)
    if type(value) is not int or not 1 <= value < 10**15:  # a bool is an int too
        raise UserError(f"{path} cannot be used: its {name} should be a whole number, 1 or more")
    return value
