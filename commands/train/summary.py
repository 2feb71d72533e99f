"""results.json in the folder of a run: what it has reached, and where that comes from, once its test error is known."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commands.line.flags import Role
from commands.settings import TrainSettings
from train.errors import RunError, UserError
from train.run.config import CHECKPOINT, SUMMARY, read_config, read_small
from train.run.history import Row, best_row, chooses_average
from train.run.open_folder import OpenFolder

FORMAT = 1  # of the file; a new key does not change it
LARGEST = 1_000_000  # bytes
FROM_CONFIG = ("parameters", "device", "versions", "version", "git_revision", "command_line")


class Summary:
    """results.json in the folder of a run, which is there as long as the run is finished.

    It is derived from the rows of the run, from config.json and from the date of checkpoint.pt. So it can be made again
    from these, and a run that is made longer has none until its new end.

    Args:
        directory: The folder of the run.
        settings: Settings of the run.

    Raises:
        UserError: If a file of this name is in the folder and is not ours.
    """

    def __init__(self, directory: OpenFolder, settings: TrainSettings):
        self.directory = directory
        self.settings = settings
        _read(directory.path / SUMMARY)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the file if the test error is known, and remove it if not.

        Raises:
            UserError: If a file of this name is in the folder and is not ours.
            RunError: If the system refuses, or the folder of the run is no longer ours.
        """
        path = self.directory.path
        self.directory.require_same()
        earlier = _read(path / SUMMARY)
        if not rows or rows[-1].test_error is None:
            if earlier:
                self.directory.discard(SUMMARY)
            return
        content = summary(rows, self.settings, read_config(path) or {}, ended=_date_of(path / CHECKPOINT))
        if earlier == content | {"date": earlier.get("date")}:
            return  # a copy of checkpoint.pt may be younger than the end of the run
        text = json.dumps(content, indent=2) + "\n"
        self.directory.write(SUMMARY, lambda file: file.write(text.encode()))


def summary(rows: Sequence[Row], settings: TrainSettings, config: dict[str, Any], *, ended: datetime) -> dict[str, Any]:
    """Return the content of results.json.

    Args:
        rows: All rows of a finished run.
        settings: Settings of the run.
        config: The content of config.json. What an older version did not record in it is None in the result.
        ended: When the test error was measured.
    """
    best, free = best_row(rows), settings.names(Role.FREE)
    assert best is not None, "a finished run has epochs"
    flags = config.get("flags", {})
    return {
        "format": FORMAT,
        "test_error": rows[-1].test_error,
        "best_epoch": best.epoch,
        "valid_error": best.kept_error,
        "valid_loss": best.kept_loss,
        "is_averaged": chooses_average(best, has_average=bool(settings.ema)),
        "n_epochs": len(rows),
        "network": settings.network_settings.title,
        "dataset": settings.dataset,
        "seed": settings.seed,
        "seconds": round(sum(row.seconds for row in rows), 3),
        "date": ended.isoformat(timespec="seconds"),
        **{name: config.get(name) for name in FROM_CONFIG},
        "flags": {name: value for name, value in flags.items() if name not in free},
    }


def _date_of(path: Path) -> datetime:
    """Return when a file was written."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise RunError(f"cannot look at {path}: {error.strerror or error}") from error


def _read(path: Path) -> dict[str, Any]:
    """Return the content of the file; an empty dict if there is none.

    Raises:
        UserError: If it is not ours.
    """
    text = read_small(path, largest=LARGEST)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not {"format", "test_error", "best_epoch"} <= content.keys():
        raise UserError(f"{path} was not written by this program, and would be replaced; give it another name")
    return content
