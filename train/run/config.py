"""config.json of a run, read without trusting a byte of it."""

import json
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.run.files import read_small
from train.run.names import CONFIG

LARGEST = 1_000_000  # bytes


def read_config(folder: Path) -> dict[str, Any] | None:
    """All that config.json holds, None if there is none. Its "flags" are a dict of plain values by text.

    Raises:
        UserError: If it cannot be read, or holds no such flags.
    """
    path = folder / CONFIG
    text = read_small(path, largest=LARGEST)
    if text is None:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; it should hold the flags of the run") from error
    flags = config.get("flags") if isinstance(config, dict) else None
    if not isinstance(flags, dict):
        raise UserError(f"{path} cannot be read: it should hold the flags of the run")
    for flag, value in flags.items():
        if isinstance(value, list | dict):
            raise UserError(f"{path} cannot be read: its flag {flag!r} should be text, a number, true, false or null")
    return config
