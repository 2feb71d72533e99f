"""checkpoint.pt: all that a run needs to go on, and the flags of that run, read without trust."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from train.errors import UserError
from train.run.files import DamagedFile, load_tensors
from train.run.history import Row, why_no_run

FORMAT = 3  # of the file; format 1 had no scaler, format 2 no flags
PARTS = ("network", "optimizer", "chosen", "scaler", "flags")


@dataclass
class Checkpoint:
    """All that a run needs to go on after an epoch.

    Attributes:
        rows: One for each finished epoch.
        network: state_dict after the last of them.
        optimizer: state_dict, likewise.
        chosen: state_dict of the chosen epoch, on the CPU.
        scaler: state_dict of what scales the loss in fp16; empty in other precisions.
        flags: Those that decide the results of the run, its seed among them; empty where an older version wrote it.
    """

    rows: list[Row] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)

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

    def content(self) -> dict[str, Any]:
        """The content of the file."""
        rows = [asdict(row) for row in self.rows]
        return {"format": FORMAT, "rows": rows} | {part: getattr(self, part) for part in PARTS}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. What it holds is of the kinds that it should be; whether it fits a network is not known yet.

    Raises:
        DamagedFile: If it is not what was written.
        UserError: If it cannot be read, or is of a newer version.
    """
    content = load_tensors(path)
    written_in = content.get("format")
    if type(written_in) is int and written_in > FORMAT:
        raise UserError(f"{path} is of a newer version of this program (format {written_in}; this one reads {FORMAT})")
    try:
        if type(written_in) is not int or written_in < 1:
            raise ValueError(f"its format is {short_repr(written_in)}")
        older = {"scaler": {}} if written_in == 1 else {}
        return _checked(older | {"flags": {}} | content if written_in < FORMAT else content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DamagedFile(f"{path} is no checkpoint of this program: {reason}") from error


def _checked(content: Mapping[str, Any]) -> Checkpoint:
    rows = _rows(content["rows"])
    for part in PARTS:
        if not isinstance(content[part], dict):
            raise TypeError(f"{part} is of type {type(content[part]).__name__}, and not a dict")
    for part in ("network", "chosen"):
        for name, value in content[part].items():
            if not isinstance(name, str):
                raise TypeError(f"a name in {part} is of type {type(name).__name__}")
            if reason := why_no_tensor(value):
                raise TypeError(f"{short_repr(name)} in {part} is {reason}")
    for flag, value in content["flags"].items():
        if not isinstance(flag, str) or not isinstance(value, str | int | float | None):
            raise TypeError(f"its flag {short_repr(flag)} is of type {type(value).__name__}")
    return Checkpoint(rows, *(dict(content[part]) for part in PARTS))


def _rows(content: Any) -> list[Row]:
    if not isinstance(content, list) or not content:
        raise ValueError("it has no epochs")
    names = {field.name for field in fields(Row)}
    # Columns that came later may be missing, as in `Row`.
    if not all(isinstance(row, dict) and row.keys() <= names for row in content):
        raise ValueError("its epochs are not those of a run")
    rows = [Row(**row) for row in content]
    if reason := why_no_run(rows):
        raise ValueError(reason)
    return rows


def why_no_tensor(value: Any) -> str:
    """Say why a value is no plain tensor with numbers of its own; nothing if it is one."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"of type {type(value).__name__}, and not a tensor"
    if value.is_meta:
        return "a tensor without numbers"
    if value.is_nested or value.layout != torch.strided:
        return f"a {'nested' if value.is_nested else value.layout} tensor"
    return "a quantized tensor" if value.is_quantized else ""
