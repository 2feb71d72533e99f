"""checkpoint.pt: everything from which a run is resumed, and the settings of that run, read without trust."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from train.errors import DamagedFile, UserError
from train.run.files import load_tensors
from train.run.history import Row, to_record, why_no_run
from train.run.unfinished_epoch import UnfinishedEpoch

FORMAT = 4  # of the file; format 1 had no scaler, format 2 no flags, format 3 no unfinished epoch
PARTS = ("network", "optimizer", "chosen", "scaler", "flags", "ema")


@dataclass
class Checkpoint:
    """The state of a run after an epoch, or after a step inside one.

    Attributes:
        rows: One for each finished epoch.
        network: state_dict of the network after the last step.
        optimizer: state_dict of the optimizer after the same step.
        chosen: state_dict of the network after the chosen epoch, on the CPU; empty before the first epoch is finished.
        scaler: state_dict of the gradient scaler in fp16; empty in other precisions.
        flags: Settings that decide the results of the run, its seed among them; empty if an older version wrote the
            file.
        ema: state_dict of the average of the weights after the last step; empty if the run keeps none.
        unfinished: The epoch of the last step, if it is not finished; None after an epoch.
    """

    rows: list[Row] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] = field(default_factory=dict)
    unfinished: UnfinishedEpoch | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the run has not taken a step."""
        return not self.rows and self.unfinished is None

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 if there is none."""
        return len(self.rows)

    @property
    def position(self) -> str:
        """How far the run is, for the user."""
        if self.unfinished is None:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1}, after batch {self.unfinished.num_steps}"

    @property
    def test_error(self) -> float | None:
        """Fraction of test images that the chosen weights classify wrongly; None until all epochs are finished."""
        return self.rows[-1].test_error if self.rows else None

    def is_finished(self, n_epochs: int) -> bool:
        """Return whether all epochs are finished and the test error is measured."""
        return self.epoch == n_epochs and self.test_error is not None

    def content(self) -> dict[str, Any]:
        """Return the content of the file. A run that keeps no average has no such part, as in older versions."""
        rows = [to_record(row) for row in self.rows]
        parts = {part: getattr(self, part) for part in PARTS if part != "ema" or self.ema}
        unfinished = self.unfinished.content() if self.unfinished else None
        return {"format": FORMAT, "rows": rows} | parts | {"unfinished": unfinished}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Its values have the right types; whether they fit a network is not known yet.

    Raises:
        DamagedFile: If the file is damaged, or is no checkpoint.
        UserError: If the file cannot be read, or a newer version wrote it.
    """
    content = load_tensors(path)
    written_in = content.get("format")
    if type(written_in) is int and written_in > FORMAT:
        raise UserError(f"{path} is of a newer version of this program (format {written_in}; this one reads {FORMAT})")
    try:
        if type(written_in) is not int or written_in < 1:
            raise ValueError(f"its format is {short_repr(written_in)}")
        added_later: dict[str, Any] = {"unfinished": None} if written_in < 4 else {}
        if written_in < 3:
            added_later["flags"] = {}
        if written_in < 2:
            added_later["scaler"] = {}
        return _checked({"ema": {}} | added_later | content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DamagedFile(f"{path} is no checkpoint of this program: {reason}") from error


def _checked(content: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint with this content; raise KeyError, TypeError or ValueError if it is none."""
    unfinished = None if content["unfinished"] is None else UnfinishedEpoch.from_content(content["unfinished"])
    rows = _rows(content["rows"], may_be_empty=unfinished is not None)
    for part in PARTS:
        if not isinstance(content[part], dict):
            raise TypeError(f"{part} is of type {type(content[part]).__name__}, and not a dict")
    for part in ("network", "chosen", "ema"):
        for name, value in content[part].items():
            if not isinstance(name, str):
                raise TypeError(f"a name in {part} is of type {type(name).__name__}")
            if reason := why_no_tensor(value):
                raise TypeError(f"{short_repr(name)} in {part} is {reason}")
    for flag, value in content["flags"].items():
        if not isinstance(flag, str) or not isinstance(value, str | int | float | None):
            raise TypeError(f"its flag {short_repr(flag)} is of type {type(value).__name__}")
    parts = {part: dict(content[part]) for part in PARTS}
    return Checkpoint(rows, unfinished=unfinished, **parts)


def _rows(content: Any, *, may_be_empty: bool) -> list[Row]:
    if not isinstance(content, list) or not (content or may_be_empty):
        raise ValueError("it has no epochs")
    names = {field.name for field in fields(Row)}
    # Columns that were added later may be missing, as their defaults in `Row` allow.
    if not all(isinstance(row, dict) and row.keys() <= names for row in content):
        raise ValueError("its epochs are not those of a run")
    rows = [Row(**row) for row in content]
    if reason := why_no_run(rows):
        raise ValueError(reason)
    return rows


def why_no_tensor(value: Any) -> str:
    """Say why a value is not a plain tensor with values of its own; return an empty text if it is one."""
    import torch  # takes seconds, which commands that read no tensors do not spend

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"of type {type(value).__name__}, and not a tensor"
    if value.is_meta:
        return "a tensor without numbers"
    if value.is_nested or value.layout != torch.strided:
        return f"a {'nested' if value.is_nested else value.layout} tensor"
    return "a quantized tensor" if value.is_quantized else ""
