"""The flags of several runs, and which of them differ."""

from collections.abc import Collection, Sequence
from typing import Any

from commands.line.flags import Role
from commands.recipes import altered_flags
from commands.run_record import RunRecord
from commands.settings import TrainSettings
from commands.tables import plain

UNKNOWN = "-"
# Of a run of an older version that had no such flag. Where the program chooses a value, it may have chosen any.
DEFAULTS = {
    name: value for name, value in TrainSettings.defaults().items() if name not in TrainSettings.names(Role.CHOSEN)
}
MISSING = object()


def compared_flags(runs: Sequence[RunRecord], *, not_compared: Collection[str]) -> list[str]:
    """Return the flags by which runs are told apart, in the order in which config.json has them.

    Args:
        runs: One or more.
        not_compared: Flags to leave out: those with columns of their own, and those that do not affect a result.
            "data" is compared nevertheless for runs on folders of images, which nothing else tells apart.
    """
    names = dict.fromkeys(
        name
        for run in runs
        for name in run.flags
        if name not in not_compared or (name == "data" and run.flags.get("dataset") == "folder")
    )
    return list(names)


def differing_flags(runs: Sequence[RunRecord], *, not_compared: Collection[str]) -> list[str]:
    """Return the flags of `compared_flags` that are not the same in all runs.

    A flag that a run of an older version did not have has its default.
    """
    names = compared_flags(runs, not_compared=not_compared)
    return [name for name in names if len({comparable(run, name) for run in runs}) > 1]


def value_of(run: RunRecord, flag: str) -> Any:
    """Return the plain value of a flag; its default, or MISSING, if the run did not record it."""
    return run.flags.get(flag, DEFAULTS.get(flag, MISSING))


def shown(run: RunRecord, flag: str) -> str:
    """Return the value of a flag as a cell of a table."""
    altered = " (altered)" if flag == "recipe" and altered_flags(run.flags) else ""
    value = value_of(run, flag)
    return UNKNOWN if value is MISSING else plain(value) + altered


def comparable(run: RunRecord, flag: str) -> float | str:
    """Return a number as it is, since 0 and 0.0 are the same value of a flag, and anything else as it is shown."""
    value = value_of(run, flag)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return shown(run, flag)
