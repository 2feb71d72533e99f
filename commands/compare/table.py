"""Several runs side by side: how far each is, how good, how fast, and what they do not have in common."""

import statistics
from dataclasses import dataclass

from commands.recipes import altered_flags
from commands.run_history import Logbook
from commands.tables import aligned, plain, to_csv
from train.run.history import Row, best_row

# Flags with a place of their own in the table, and those that say nothing about a result.
NOT_COMPARED = ("dataset", "depth", "growth_rate", "n_epochs")
NOT_COMPARED += ("save", "data", "download", "resume", "tensorboard", "debug")
FEW_RUNS = 6  # each in a column of its own; more of them are read better as lines
UNKNOWN = "-"


@dataclass(frozen=True)
class RunsTable:
    """What is printed of some runs, at least one."""

    runs: list[Logbook]

    def as_text(self) -> str:
        """The table, with a column for each run if they are few, else with a line for each."""
        flags = differing_flags(self.runs)
        columns = [_names(flags), *(_cells(run, flags) for run in self.runs)]
        return aligned(list(zip(*columns, strict=True)) if len(self.runs) <= FEW_RUNS else columns)

    def as_csv(self) -> bytes:
        """A line for each run. Errors are fractions."""
        flags = differing_flags(self.runs)
        return to_csv([_record(run, flags) for run in self.runs])


def differing_flags(runs: list[Logbook]) -> list[str]:
    """Flags that are not the same in all runs, in the order in which the runs name them.

    A run of an older version may lack a flag; that is a difference too.
    """
    names = dict.fromkeys(name for run in runs for name in run.flags if _is_compared(run, name))
    return [name for name in names if len({_compared(run, name) for run in runs}) > 1]


def _is_compared(run: Logbook, flag: str) -> bool:
    """A user's own images are known by their folder alone; those of other data sets are the same wherever they lie."""
    return flag not in NOT_COMPARED or (flag == "data" and run.flags.get("dataset") == "folder")


def _shown(run: Logbook, flag: str) -> str:
    altered = " (altered)" if flag == "recipe" and altered_flags(run.flags) else ""
    return plain(run.flags[flag]) + altered if flag in run.flags else UNKNOWN


def _compared(run: Logbook, flag: str) -> float | str:
    """A number as such, since 0 and 0.0 are the same flag; all else as it is shown."""
    value = run.flags.get(flag)
    return value if type(value) in (int, float) else _shown(run, flag)


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


def _cells(run: Logbook, flags: list[str]) -> list[str]:
    best = best_row(run.rows)
    return [
        plain(run.path),
        f"L={_shown(run, 'depth')}, k={_shown(run, 'growth_rate')}",
        _shown(run, "dataset"),
        *(_shown(run, flag) for flag in flags),
        f"{len(run.rows)} of {run.n_epochs}",
        str(best.epoch) if best else UNKNOWN,
        _percent(best.valid_error if best else None),
        _percent(run.test_error),
        f"{run.parameters:,}",
        _number(_median(run.rows, "seconds"), "{:,.1f}"),
        _number(_median(run.rows, "images_per_second"), "{:,.0f}"),
        _number(_peak(run.rows), "{:,.0f}"),
    ]


def _record(run: Logbook, flags: list[str]) -> dict[str, object]:
    best = best_row(run.rows)
    record: dict[str, object] = {"run": run.path}
    record |= {name: run.flags.get(name) for name in ("dataset", "depth", "growth_rate")}
    record |= {f"flag_{flag}": run.flags.get(flag) for flag in flags}
    record |= {"recipe_altered": " ".join(altered_flags(run.flags))} if "recipe" in flags else {}
    record |= {"n_epochs": run.n_epochs, "epochs_done": len(run.rows), "best_epoch": best.epoch if best else None}
    record |= {"valid_error": best.valid_error if best else None, "test_error": run.test_error}
    record |= {"parameters": run.parameters, "seconds_per_epoch": _median(run.rows, "seconds")}
    record |= {"images_per_second": _median(run.rows, "images_per_second"), "peak_memory_mb": _peak(run.rows)}
    return record


def _median(rows: list[Row], column: str) -> float | None:
    return statistics.median(getattr(row, column) for row in rows) if rows else None


def _peak(rows: list[Row]) -> float | None:
    return max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)


def _percent(fraction: float | None) -> str:
    return _number(fraction, "{:.2%}")


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
