"""Whether flags that were written down are those of a run: which flags decide its results, and which may change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.saved_run import CHOSEN_FLAGS, FREE_FLAGS


def deciding_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those flags that decide the results of a run."""
    return {flag: value for flag, value in flags.items() if flag not in FREE_FLAGS}


def first_difference(recorded: Mapping[str, Any], flags: Mapping[str, Any]) -> str | None:
    """The first flag by which a run is not the one that was recorded, None if there is none.

    Args:
        recorded: Flags that were written down. One that is missing is not compared.
        flags: Of the run. None is no difference where it lets the program choose.
    """
    for flag, value in deciding_flags(flags).items():
        is_chosen = value is None and flag in CHOSEN_FLAGS
        if flag in recorded and not is_chosen and not _may_follow(flag, recorded[flag], value):
            return flag
    return None


def _may_follow(flag: str, recorded: Any, value: Any) -> bool:
    """Whether a run may go on with this value of a flag.

    Epochs may grow. The file of first weights, which were read long ago, may have been moved.
    """
    if flag == "n_epochs":
        return type(recorded) is int and value >= recorded
    if flag == "init_weights" and isinstance(recorded, str) and isinstance(value, str):
        return Path(recorded).name == Path(value).name
    return recorded == value
