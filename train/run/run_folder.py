"""The folder of a run: what is written into it, and how a run goes on from it.

checkpoint.pt is the truth. results.csv, model.pt and curves.png are made from it, and made again when a run goes on,
so that a kill between two files leaves no contradiction. config.json says what the run is. The checkpoint before the
last one is kept, for the case that a disk damages the last one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.errors import RunError, UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.run.checkpoint import Checkpoint, read_checkpoint
from train.run.files import DamagedFile, sealed
from train.run.history import Row, to_csv
from train.run.identity import RunIdentity
from train.run.names import CHECKPOINT, CONFIG, CURVES, DAMAGED, FILES, MODEL, PREVIOUS, RESULTS
from train.run.open_folder import OpenFolder, Write
from train.terminal import say, say_error, warn


class RunFolder:
    """A save directory that this run may write to. The main process writes and reads; the others learn the outcome.

    Args:
        path: The folder.
        held: The same, held open; None in all processes but the first.
        processes: The processes of the run.
        flags: Of the run. The program fills in what it chooses for a flag that is None.
        defaults: Of flags that checkpoints of older versions do not name, so that they were as these say.
        is_new: Whether there was no checkpoint when the run began, so that there may be none when it is loaded.
    """

    def __init__(
        self,
        path: Path,
        held: OpenFolder | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
        *,
        identity: RunIdentity | None = None,
        is_new: bool = False,
    ):
        self.path = path
        self.held = held
        self.processes = processes
        self.identity = identity or RunIdentity({}, {})
        self.is_new = is_new
        self.title = ""  # of curves.png
        self.writers: list[Callable[[Sequence[Row]], None]] = []  # of what else is made from all rows

    def clear(self) -> None:
        """Remove what a killed run has left of files that it was writing."""
        try:
            self.held.discard_leftovers(FILES)
        except OSError as error:
            raise UserError(f"--save {self.path} cannot be cleared of a killed run: {error}") from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, and take its flags for those of the run from now on."""
        self.identity = self.identity.with_settings(config["flags"])
        text = json.dumps(config, indent=2) + "\n"
        self.processes.on_main(lambda: self.held.write(CONFIG, _content(text.encode())))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt, which then names the flags of this run, and what is made from it."""
        self.processes.on_main(self._save, checkpoint)

    def write_products(self, checkpoint: Checkpoint) -> None:
        """Write results.csv, model.pt, curves.png and what `writers` write, as the checkpoint has them."""
        self.processes.on_main(self._write_products, checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.flags = self.identity.deciding()
        self.held.write(CHECKPOINT, _content(sealed(checkpoint.content())), keep=PREVIOUS)
        self._write_products(checkpoint)

    def _write_products(self, checkpoint: Checkpoint) -> None:
        from commands.train.curves import draw_curves

        # Weights and the table that says which epoch they are of.
        contents = {MODEL: sealed(checkpoint.chosen), RESULTS: to_csv(checkpoint.rows).encode()}
        self.held.write_both(MODEL, RESULTS, {name: _content(content) for name, content in contents.items()})
        words = {"title": self.title, "label_smoothing": self.identity.settings.get("label_smoothing", 0.0)}
        self.held.write(CURVES, lambda file: draw_curves(checkpoint.rows, file, **words))
        for write in self.writers:
            write(checkpoint.rows)

    def load(self, *, n_epochs: int) -> Checkpoint:
        """Read back where the run stands, an empty checkpoint at its beginning.

        A damaged checkpoint.pt is replaced by the one before it, and a warning says so. Where the run is to be longer
        than it was, its test error no longer stands at the end and is dropped.

        Raises:
            UserError: If no checkpoint is whole, or it is of another version, of a run with other flags, or of one
                longer than `n_epochs`.
            RunError: If a checkpoint has come into the folder of a new run, or the folder is not ours any more.
        """
        checkpoint = self.processes.on_main(self._read)
        if checkpoint.epoch > n_epochs:
            raise UserError(f"--n_epochs is {n_epochs}, but the run in {self.path} has done {checkpoint.epoch} epochs")
        if checkpoint.epoch < n_epochs and checkpoint.test_error is not None:
            epochs = f"{checkpoint.epoch} epoch{'s' if checkpoint.epoch > 1 else ''}"
            say(f"The run had ended after {epochs} with test error {checkpoint.test_error:.2%}.")
            checkpoint.rows[-1].test_error = None
        return checkpoint

    def _read(self) -> Checkpoint:
        """The last checkpoint, the one before if that is damaged or missing, or an empty one if there is none."""
        last, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        found = [path for path in (last, previous) if path.exists()]
        self.held.require_same()
        if not found:
            return Checkpoint()
        if self.is_new:
            raise RunError(f"{found[0]} has appeared since this run began, and is not its own; it stays as it is")
        if previous not in found:
            return self._read_own(last)
        try:
            if last not in found:
                raise DamagedFile(f"{last} is missing")
            return self._read_own(last)
        except DamagedFile as error:
            checkpoint = self._read_instead(previous, error)
            warning = f"{error}; going on from {previous.name}, epoch {checkpoint.epoch}"
            if last in found:
                self.held.rename(CHECKPOINT, DAMAGED)  # or the next save would put it where the whole one is
                warning += f"; it stays as {DAMAGED}"
            warn(warning)
            return checkpoint

    def _read_instead(self, previous: Path, error: DamagedFile) -> Checkpoint:
        try:
            return self._read_own(previous)
        except DamagedFile as another:
            raise DamagedFile(f"{error}; and {another}") from another

    def _read_own(self, path: Path) -> Checkpoint:
        """A checkpoint, once it is known to be of this run."""
        checkpoint = read_checkpoint(path)
        if not checkpoint.flags:
            say_error(f"note: {path} was written by an older version, and does not say which run it is of")
            return checkpoint
        recorded = {**self.identity.defaults, **checkpoint.flags}
        flag = self.identity.first_difference(recorded)
        if flag is not None:
            raise UserError(
                f"{path} is of another run: it was trained with --{flag} {recorded[flag]}, and this run has --{flag} "
                f"{self.identity.settings[flag]}; put this run's own checkpoint there, or choose another folder"
            )
        return checkpoint


def _content(content: bytes) -> Write:
    return lambda file: file.write(content)
