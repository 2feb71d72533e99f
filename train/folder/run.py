"""The folder of a run: what lies in it, and how a run goes on from it.

checkpoint.pt is the truth. results.csv, model.pt and curves.png are made from it, and made again when a run goes on,
so that a kill between two files leaves no contradiction. config.json says what the run is. The checkpoint before the
last one is kept, for the case that a disk damages the last one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from train.errors import RunError, UserError
from train.folder.history import Row, to_csv
from train.folder.saving import DamagedFile, atomic_write, load_tensors, save_tensors, temporary_name
from train.team import ALONE, Team
from train.terminal import say, warn

CONFIG, CHECKPOINT, RESULTS, MODEL, CURVES = "config.json", "checkpoint.pt", "results.csv", "model.pt", "curves.png"
PREVIOUS, DAMAGED = "checkpoint.previous.pt", "checkpoint.damaged.pt"
FILES = (CONFIG, CHECKPOINT, PREVIOUS, RESULTS, MODEL, CURVES)
FORMAT = 2  # of checkpoint.pt; format 1 had no scaler
PARTS = ("network", "optimizer", "chosen", "scaler")


@dataclass
class Checkpoint:
    """All that a run needs to go on after an epoch.

    Attributes:
        rows: One for each finished epoch.
        network: state_dict after the last of them.
        optimizer: state_dict, likewise.
        chosen: state_dict of the chosen epoch, on the CPU.
        scaler: state_dict of what scales the loss in fp16; empty in other precisions.
    """

    rows: list[Row] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The last finished epoch, 0 before the first."""
        return len(self.rows)

    @property
    def test_error(self) -> float | None:
        """Fraction of test images that the chosen weights get wrong; None until all epochs are done."""
        return self.rows[-1].test_error if self.rows else None

    def is_finished(self, n_epochs: int) -> bool:
        """Whether all epochs are done and the test error is measured."""
        return self.epoch == n_epochs and self.test_error is not None


class RunFolder:
    """A save directory that is ours to write. The first process of a team writes and reads; the others learn of it.

    Args:
        path: The folder.
        team: The processes of the run.
        label_smoothing: Of the training, for curves.png to say.
    """

    def __init__(self, path: Path, team: Team = ALONE, *, label_smoothing: float = 0):
        self.path = path
        self.team = team
        self.label_smoothing = label_smoothing
        self.title = ""  # of curves.png
        self.writers: list[Callable[[Sequence[Row]], None]] = []  # of what else is made from all rows

    def clear(self) -> None:
        """Remove what a killed run has left of files that it was writing."""
        try:
            for name in FILES:
                temporary_name(self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--save {self.path} cannot be cleared of a killed run: {error}") from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json."""
        text = json.dumps(config, indent=2) + "\n"
        self.team.first(atomic_write, self.path / CONFIG, lambda file: file.write(text.encode()))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt and then what is made from it."""
        self.team.first(self._save, checkpoint)

    def write_products(self, checkpoint: Checkpoint) -> None:
        """Write results.csv, model.pt, curves.png and what `writers` write, as the checkpoint has them."""
        self.team.first(self._write_products, checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        content = {
            "format": FORMAT,
            "rows": [asdict(row) for row in checkpoint.rows],
            "network": checkpoint.network,
            "optimizer": checkpoint.optimizer,
            "chosen": checkpoint.chosen,
            "scaler": checkpoint.scaler,
        }
        save_tensors(self.path / CHECKPOINT, content, keep=self.path / PREVIOUS)
        self._write_products(checkpoint)

    def _write_products(self, checkpoint: Checkpoint) -> None:
        from train.pictures.curves import draw_curves

        text = to_csv(checkpoint.rows)
        atomic_write(self.path / RESULTS, lambda file: file.write(text.encode()))
        save_tensors(self.path / MODEL, checkpoint.chosen)
        words = {"title": self.title, "label_smoothing": self.label_smoothing}
        atomic_write(self.path / CURVES, lambda file: draw_curves(checkpoint.rows, file, **words))
        for write in self.writers:
            write(checkpoint.rows)

    def _read(self) -> Checkpoint:
        """The last checkpoint, the one before if that is damaged or missing, or an empty one if there is none."""
        last, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        if not previous.exists():
            return read_checkpoint(last) if last.exists() else Checkpoint()
        try:
            if not last.exists():
                raise DamagedFile(f"{last} is missing")
            return read_checkpoint(last)
        except DamagedFile as error:
            checkpoint = _read_instead(previous, error)
            warning = f"{error}; going on from {previous.name}, epoch {checkpoint.epoch}"
            if last.exists():
                _put_aside(last)  # or the next save would put it where the whole one is
                warning += f"; it stays as {DAMAGED}"
            warn(warning)
            return checkpoint

    def load(self, *, n_epochs: int) -> Checkpoint:
        """Read back where the run stands, an empty checkpoint at its beginning.

        A damaged checkpoint.pt is replaced by the one before it, and a warning says so. Where the run is to be longer
        than it was, its test error no longer stands at the end and is dropped.

        Raises:
            UserError: If no checkpoint is whole, or it is of another version or of a run longer than `n_epochs`.
        """
        checkpoint = self.team.first(self._read)
        if checkpoint.epoch > n_epochs:
            raise UserError(f"--n_epochs is {n_epochs}, but the run in {self.path} has done {checkpoint.epoch} epochs")
        if checkpoint.epoch < n_epochs and checkpoint.test_error is not None:
            epochs = f"{checkpoint.epoch} epoch{'s' if checkpoint.epoch > 1 else ''}"
            say(f"The run had ended after {epochs} with test error {checkpoint.test_error:.2%}.")
            checkpoint.rows[-1].test_error = None
        return checkpoint


def _put_aside(path: Path) -> None:
    try:
        path.replace(path.with_name(DAMAGED))
    except OSError as error:
        raise RunError(f"cannot rename {path} to {DAMAGED}: {error.strerror or error}") from error


def _read_instead(previous: Path, error: DamagedFile) -> Checkpoint:
    try:
        return read_checkpoint(previous)
    except UserError as another:
        raise DamagedFile(f"{error}; and {another}") from another


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedFile: If it is not what was written.
        UserError: If it cannot be read, or is of another version.
    """
    content = load_tensors(path)
    written_in = content.get("format")
    if isinstance(written_in, int) and written_in > FORMAT:
        raise UserError(f"{path} is of a newer version of this program (format {written_in}; this one reads {FORMAT})")
    try:
        content.setdefault("scaler", {})
        rows = [Row(**row) for row in content["rows"]]
        checkpoint = Checkpoint(rows, *(dict(content[part]) for part in PARTS))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} is no checkpoint of this program: {error!r}") from error
    if not all(row.is_valid() and row.epoch == epoch for epoch, row in enumerate(rows, start=1)):
        raise DamagedFile(f"{path} is no checkpoint of this program: its epochs are not those of a run")
    if written_in not in (1, FORMAT) or not rows:
        raise DamagedFile(f"{path} is no checkpoint of this program (format {written_in!r}, {len(rows)} epochs)")
    return checkpoint
