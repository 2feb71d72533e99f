"""What a run wrote down about itself, config.json and results.csv, read without trusting a byte of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from commands.tables import plain
from train.errors import UserError
from train.run.config import CONFIG, RESULTS, read_config, read_small
from train.run.history import Row, best_row, from_csv

LARGEST_RESULTS = 50_000_000  # bytes, some 300,000 epochs
TRIES = 20  # to read files that no epoch comes between

Contents = TypeVar("Contents")


@dataclass(frozen=True)
class Logbook:
    """A run, finished or not.

    Attributes:
        path: The folder, as the user named it.
        flags: Of the command line that began it; plain values.
        n_epochs: Of the whole run.
        parameters: Of the network.
        rows: One for each epoch that is done, maybe none.
    """

    path: Path
    flags: dict[str, Any]
    n_epochs: int
    parameters: int
    rows: list[Row]

    @property
    def test_error(self) -> float | None:
        """Fraction of test images that the chosen weights got wrong; None until all epochs are done."""
        return self.rows[-1].test_error if self.rows else None

    def progress(self) -> str:
        """Say which epoch the chosen weights are from, and how far the run is."""
        if not self.rows:
            return f"weights of an epoch that is not known, as there is no {RESULTS}"
        return f"weights of epoch {best_row(self.rows).epoch}, {len(self.rows)} of {self.n_epochs} epochs done"

    def verdict(self, error: float) -> str:
        """Say whether a test error that was measured now is the one that the run wrote down."""
        if self.test_error is None:
            return "the run has recorded no test error yet"
        if self.test_error == error:
            return "the run recorded the same test error"
        limit = self.flags.get("limit_batches")
        if limit is not None:
            return f"the run recorded {self.test_error:.2%}, of few test images: it had --limit_batches {plain(limit)}"
        return (
            f"warning: the run recorded another test error, {self.test_error:.4%}, and now it is {error:.4%}; another "
            "device, version or batch size rounds otherwise, but a larger difference has another reason"
        )


def read_logbook(folder: Path) -> Logbook:
    """Read what a run says of itself. Nothing is written.

    Raises:
        UserError: If the folder holds no run, or a file in it is not what a run writes.
    """
    config = read_config(folder)
    if config is None:
        raise UserError(f"{folder} holds no run: there is no {CONFIG} in it")
    flags = config["flags"]
    path = folder / CONFIG
    return Logbook(
        path=folder,
        flags=flags,
        n_epochs=_whole_number(flags, "n_epochs", path),
        parameters=_whole_number(config, "parameters", path),
        rows=read_results(folder),
    )


def read_with_logbook(folder: Path, read: Callable[[], Contents]) -> tuple[Logbook, Contents]:
    """Read another file of a run together with its logbook, so that one speaks of the other if the run goes on.

    A run takes results.csv away before it writes new weights. A logbook that is the same before and after is therefore
    that of what was read in between.

    Args:
        folder: Of the run.
        read: Reads the other file.

    Raises:
        UserError: If the folder holds no run, or a file in it is not what a run writes.
    """
    for _ in range(TRIES):
        before, contents = read_logbook(folder), read()
        if read_logbook(folder) == before:
            return before, contents
    raise UserError(f"the run in {folder} writes its files faster than they can be read; try again when it has ended")


def read_logbooks(folders: Sequence[Path]) -> tuple[list[Logbook], list[UserError]]:
    """Read several runs. A folder that is no run stands for the runs directly below it.

    Returns:
        The runs, at least one, and an error for each of the others, which cannot be read as a run.

    Raises:
        UserError: If two of the folders are one, or no run can be read.
    """
    first: dict[str, Path] = {}
    runs: list[Logbook] = []
    errors: list[UserError] = []
    for path in (path for folder in folders for path in _runs_in(folder)):
        same = first.setdefault(os.path.realpath(path), path)
        if same is not path:
            raise UserError(f"RUNS names one run twice: {same} and {path}")
        try:
            runs.append(read_logbook(path))
        except UserError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    return runs, errors


def _runs_in(folder: Path) -> list[Path]:
    """A folder if it is a run, else the runs directly below it, else the folder after all."""
    try:
        if (folder / CONFIG).exists():
            return [folder]
        return sorted(path.parent for path in folder.glob(f"*/{CONFIG}")) or [folder]
    except OSError:  # which reading it says once more
        return [folder]


def read_results(folder: Path) -> list[Row]:
    """The rows of results.csv, none if there is no such file yet.

    Raises:
        UserError: If it is not what a run writes. The line says where and what is wrong.
    """
    path = folder / RESULTS
    text = read_small(path, largest=LARGEST_RESULTS)
    try:
        return from_csv(text) if text is not None else []
    except ValueError as error:
        raise UserError(f"{path} is no table of epochs: {error}") from error


def _whole_number(values: dict[str, Any], name: str, path: Path) -> int:
    value = values.get(name)
    if type(value) is not int or not 1 <= value < 10**15:  # a bool is an int too
        raise UserError(f"{path} is of no run: its {name} should be a whole number, 1 or more")
    return value
