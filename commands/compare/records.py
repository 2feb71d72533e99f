"""Runs and groups of runs as values for other programs: the lines of a CSV file, and JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from commands.compare.groups import SeedGroup
from commands.recipes import altered_flags
from commands.run_record import RunRecord
from commands.spread import Spread
from train.run.history import Row, best_row


def to_json(runs: Sequence[RunRecord], groups: Sequence[SeedGroup]) -> str:
    """Return one JSON object of all runs, with all their flags, and all groups. Errors are fractions."""
    content = {
        "runs": [_finite(record_of(run, [])) | {"flags": _finite(run.flags)} for run in runs],
        "groups": [_record_of_group(group) for group in groups],
    }
    return json.dumps(content, indent=2, default=str, allow_nan=False)


def record_of(run: RunRecord, flags: list[str]) -> dict[str, object]:
    """Return what is known of a run by name; errors are fractions.

    Args:
        run: The run.
        flags: The flags to include, each under its name with "flag_" before it.
    """
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
        "seconds_per_epoch": median([row.seconds for row in run.rows]),
        "images_per_second": median([row.images_per_second for row in run.rows]),
        "peak_memory_mb": peak_memory(run.rows),
    }


def _record_of_group(group: SeedGroup) -> dict[str, object]:
    return {
        "name": group.name,
        "runs": [run.path for run in group.runs],
        "seeds": group.seeds,
        "n": len(group.runs),
        "valid_error": _mean_and_deviation(group.valid_error),
        "test_error": _mean_and_deviation(group.test_error),
    }


def _mean_and_deviation(spread: Spread | None) -> dict[str, float | None] | None:
    return {"mean": spread.mean, "standard_deviation": spread.deviation} if spread else None


def _finite(values: Mapping[str, object]) -> dict[str, object]:
    """Replace numbers that are infinite or NaN, as anybody may have written, by text: JSON has none."""
    return {
        name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def median(values: list[float]) -> float | None:
    """Return the median; None if there are no values."""
    return statistics.median(values) if values else None


def peak_memory(rows: list[Row]) -> float | None:
    """Return the largest memory of all epochs in MB; None if it is not known."""
    return max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)
