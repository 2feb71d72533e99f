"""The folder of a run: the files written into it, and how a run is resumed from them.

checkpoint.pt is the truth. results.csv, model.pt, plots and events are derived from it, and derived again when a run is
resumed, so that a kill between two files leaves no contradiction. config.json says which run it is. The previous
checkpoint is kept in case a disk damages the last one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from train.errors import DamagedFile, RunError, UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.run.checkpoint import Checkpoint, read_checkpoint
from train.run.config import CHECKPOINT, CONFIG, DAMAGED, FILES, MODEL, PREVIOUS, RESULTS
from train.run.files import serialize
from train.run.history import Row, to_csv
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder, Write
from train.terminal import say, say_error, warn


class Writer(Protocol):
    """Something else that is derived from the rows of a run, such as a plot."""

    def write(self, rows: Sequence[Row]) -> None:
        """Bring it up to date with all rows of the run.

        Raises:
            RunError: If the system refuses.
        """
        ...


class RunFolder:
    """A save directory that this run may write into. The main process reads and writes; the others learn the outcome.

    Args:
        path: The folder.
        directory: The same folder, held open; None in all processes but the main one.
        processes: The processes of the run.
        identity: The settings of the run, which its checkpoints have to agree with.
        is_new: Whether there was no checkpoint when the run began. One that is found later is then not its own.
    """

    def __init__(
        self,
        path: Path,
        directory: OpenFolder | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
        *,
        identity: RunIdentity,
        is_new: bool = False,
    ):
        self.path = path
        self.processes = processes
        self.identity = identity
        self.is_new = is_new
        self._directory = directory
        self._writers: list[Writer] = []

    @property
    def directory(self) -> OpenFolder:
        """The folder, held open; in the main process only."""
        if self._directory is None:
            raise RuntimeError("only the main process holds the folder open")
        return self._directory

    def add_writer(self, create: Callable[[OpenFolder], Writer]) -> None:
        """Let something else be written after each epoch, after the files of the run itself.

        Args:
            create: Called in the main process only.

        Raises:
            UserError: If `create` raises it.
        """
        self.processes.on_main(lambda: self._writers.append(create(self.directory)))

    def clear(self) -> None:
        """Remove unfinished files that a killed process has left.

        Raises:
            UserError: If the disk is broken.
        """
        try:
            self.directory.discard_leftovers(FILES)
        except OSError as error:
            raise UserError(f"--save {self.path} cannot be cleared of a killed run: {error}") from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json, and use the flags in it as the settings of the run from now on.

        Raises:
            RunError: If the system refuses, or the folder is no longer ours.
        """
        self.identity = self.identity.with_settings(config["flags"])
        text = json.dumps(config, indent=2) + "\n"
        self.processes.on_main(lambda: self.directory.write(CONFIG, _content(text.encode())))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.pt with the settings that decide the results, and everything that is derived from it.

        Inside an epoch nothing else is written, as nothing else has changed.

        Raises:
            RunError: If the system refuses, or the folder is no longer ours.
        """
        self.processes.on_main(self._save, checkpoint)

    def write_products(self, checkpoint: Checkpoint) -> None:
        """Write everything that is derived from the checkpoint: results.csv, model.pt, and the output of the writers.

        Raises:
            RunError: If the system refuses, or the folder is no longer ours.
        """
        self.processes.on_main(self._write_products, checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.flags = self.identity.deciding()
        self.directory.write(CHECKPOINT, _content(serialize(checkpoint.content())), keep=PREVIOUS)
        if checkpoint.unfinished is None:
            self._write_products(checkpoint)

    def _write_products(self, checkpoint: Checkpoint) -> None:
        # The weights, and the table that says which epoch they are of.
        contents = {MODEL: serialize(checkpoint.chosen), RESULTS: to_csv(checkpoint.rows).encode()}
        self.directory.write_both(MODEL, RESULTS, {name: _content(content) for name, content in contents.items()})
        for writer in self._writers:
            writer.write(checkpoint.rows)

    def load(self, *, n_epochs: int) -> Checkpoint:
        """Return the checkpoint from which the run is resumed; an empty one if the run is new.

        A damaged checkpoint.pt is replaced by the previous one, with a warning. If the run is to become longer than it
        was, its test error does not belong to the last epoch any more and is dropped.

        Args:
            n_epochs: Epochs of the whole run.

        Raises:
            UserError: If no checkpoint is undamaged, or the checkpoint is of a newer version, of another run, or of one
                longer than `n_epochs`.
            RunError: If a checkpoint has appeared in the folder of a new run, or the folder is no longer ours.
        """
        checkpoint = self.processes.on_main(self._read)
        begun = checkpoint.epoch + (checkpoint.unfinished is not None)
        if begun > n_epochs:
            raise UserError(f"--n_epochs is {n_epochs}, but the run in {self.path} has begun {begun} epochs")
        if checkpoint.epoch < n_epochs and checkpoint.test_error is not None:
            epochs = f"{checkpoint.epoch} epoch{'s' if checkpoint.epoch > 1 else ''}"
            say(f"The run had ended after {epochs} with test error {checkpoint.test_error:.2%}.")
            checkpoint.rows[-1].test_error = None
        return checkpoint

    def _read(self) -> Checkpoint:
        """Return the last checkpoint, the previous one if that is damaged or missing, or an empty one."""
        last, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        found = [path for path in (last, previous) if path.exists()]
        self.directory.require_same()
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
            warning = f"{error}; going on from {previous.name}, {checkpoint.position}"
            if last in found:
                self.directory.rename(CHECKPOINT, DAMAGED)  # or the next save would put it where the undamaged one is
                warning += f"; it stays as {DAMAGED}"
            warn(warning)
            return checkpoint

    def _read_instead(self, previous: Path, error: DamagedFile) -> Checkpoint:
        try:
            return self._read_own(previous)
        except DamagedFile as another:
            raise DamagedFile(f"{error}; and {another}") from another

    def _read_own(self, path: Path) -> Checkpoint:
        """Read a checkpoint, and make sure that it is of this run."""
        checkpoint = read_checkpoint(path)
        if not checkpoint.flags:
            say_error(f"note: {path} was written by an older version, and does not say which run it is of")
            return checkpoint
        difference = self.identity.first_difference(checkpoint.flags)
        if difference is not None:
            flag, recorded, value = difference
            raise UserError(
                f"{path} is of another run: it was trained with --{flag} {recorded}, and this run has --{flag} "
                f"{value}; put this run's own checkpoint there, or choose another folder"
            )
        return checkpoint


def _content(content: bytes) -> Write:
    return lambda file: file.write(content)
