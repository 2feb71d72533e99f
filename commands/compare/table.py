"""A table of several runs: epochs done, errors, speed, memory, and the flags that differ."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from commands.recipes import altered_flags
from commands.run_record import RunRecord
from commands.tables import aligned, plain, to_csv
from train.run.history import Row, best_row

FEW_RUNS = 6  # each gets a column of its own; a table of more runs is easier to read with a line for each
UNKNOWN = "-"


@dataclass(frozen=True)
class RunsTable:
    """A table of runs.

    Attributes:
        runs: One or more.
        not_compared: Flags that get no line of their own if they differ, see `differing_flags`.
    """

    runs: Sequence[RunRecord]
    not_compared: Collection[str]

    def as_text(self) -> str:
        """The table with a column for each run if there are few of them, else with a line for each."""
        flags = self._differing_flags()
        columns = [_names(flags), *(_cells(run, flags) for run in self.runs)]
        return aligned(list(zip(*columns, strict=True)) if len(self.runs) <= FEW_RUNS else columns)

    def as_csv(self) -> bytes:
        """The table with a line for each run. Errors are fractions."""
        flags = self._differing_flags()
        return to_csv([_record(run, flags) for run in self.runs])

    def _differing_flags(self) -> list[str]:
        return differing_flags(self.runs, not_compared=self.not_compared)


def differing_flags(runs: Sequence[RunRecord], *, not_compared: Collection[str]) -> list[str]:
    """Find the flags that are not the same in all runs, in the order in which config.json has them.

    A flag that is missing from a run, as it may be of an older version, differs from any value.

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
    return [name for name in names if len({_comparable(run, name) for run in runs}) > 1]


def _shown(run: RunRecord, flag: str) -> str:
    altered = " (altered)" if flag == "recipe" and altered_flags(run.flags) else ""
    return plain(run.flags[flag]) + altered if flag in run.flags else UNKNOWN


def _comparable(run: RunRecord, flag: str) -> float | str:
    """A number as it is, since 0 and 0.0 are the same value of a flag; anything else as it is shown."""
    value = run.flags.get(flag)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return _shown(run, flag)


def _names(flags: list[str]) -> list[str]:
    return [
        "run",
        "network",
        "data set",
        *(f"--{plain(flag)}" for flag in flags),
        "epochs",
        "best epoch",
        "validation error",
        "test error",
        "parameters",
        "s/epoch",
        "images/s",
        "peak MB",
    ]


def _cells(run: RunRecord, flags: list[str]) -> list[str]:
    best = best_row(run.rows)
    return [
        plain(run.path),
        f"L={_shown(run, 'depth')}, k={_shown(run, 'growth_rate')}",
        _shown(run, "dataset"),
        *(_shown(run, flag) for flag in flags),
        f"{len(run.rows)} of {run.n_epochs}",
        str(best.epoch) if best else UNKNOWN,
        _formatted(best.kept_error if best else None, ".2%"),
        _formatted(run.test_error, ".2%"),
        f"{run.parameters:,}",
        _formatted(_median([row.seconds for row in run.rows]), ",.1f"),
        _formatted(_median([row.images_per_second for row in run.rows]), ",.0f"),
        _formatted(_peak(run.rows), ",.0f"),
    ]


def _record(run: RunRecord, flags: list[str]) -> dict[str, object]:
    best = best_row(run.rows)
    record: dict[str, object] = {"run": run.path}
    record |= {name: run.flags.get(name) for name in ("dataset", "depth", "growth_rate")}
    record |= {f"flag_{flag}": run.flags.get(flag) for flag in flags}
    if "recipe" in flags:
        record["recipe_altered"] = " ".join(altered_flags(run.flags))
    return record | {
        "n_epochs": run.n_epochs,
        "epochs_done": len(run.rows),
        "best_epoch": best.epoch if best else None,
        "valid_error": best.kept_error if best else None,
        "test_error": run.test_error,
        "parameters": run.parameters,
        "seconds_per_epoch": _median([row.seconds for row in run.rows]),
        "images_per_second": _median([row.images_per_second for row in run.rows]),
        "peak_memory_mb": _peak(run.rows),
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _peak(rows: list[Row]) -> float | None:
    return max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)


def _formatted(value: float | None, spec: str) -> str:
    return UNKNOWN if value is None else format(value, spec)
