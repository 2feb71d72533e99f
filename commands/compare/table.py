"""Tables of several runs: epochs done, errors, speed, memory and the flags that differ, and the spread over seeds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from commands.compare.flags import UNKNOWN, differing_flags, shown
from commands.compare.groups import SeedGroup, group_by_seed
from commands.compare.records import median, peak_memory, record_of, to_json
from commands.run_record import RunRecord
from commands.spread import percent
from commands.tables import aligned, latex, markdown, plain, to_csv
from train.run.history import best_row

Format = Literal["text", "markdown", "latex", "json"]
FEW_RUNS = 6  # each gets a column of its own; a table of more runs is easier to read with a line for each
OVER_SEEDS = "Runs that differ in their seed alone, mean ± standard deviation"


@dataclass(frozen=True)
class RunsTable:
    """A table of runs, and another one of the groups of runs that differ in their seed alone.

    Attributes:
        runs: One or more.
        not_compared: Flags that get no line of their own if they differ, see `compared_flags`.
    """

    runs: Sequence[RunRecord]
    not_compared: Collection[str]

    @property
    def groups(self) -> list[SeedGroup]:
        """The groups of runs that differ in their seed alone."""
        return group_by_seed(self.runs, not_compared=self.not_compared)

    def as_lines(self, form: Format) -> list[str]:
        """Both tables as lines of text.

        Args:
            form: "text" has a column for each run if there are few of them, else a line for each. "markdown" and
                "latex" have a line for each run. "json" is one object with all flags, and with errors as fractions.
        """
        if form == "json":
            return to_json(self.runs, self.groups).split("\n")
        flags, groups = self._differing_flags(), self.groups
        lines = _laid_out([_names(flags), *(_cells(run, flags) for run in self.runs)], form)
        if groups:
            flags = [flag for flag in flags if flag != "seed"]
            title = {"text": [OVER_SEEDS], "markdown": [f"{OVER_SEEDS}:", ""], "latex": [f"% {OVER_SEEDS}"]}[form]
            cells = [_names_of_group(flags), *(_cells_of_group(group, flags) for group in groups)]
            lines += ["", *title, *_laid_out(cells, form)]
        return lines

    def as_csv(self) -> bytes:
        """The table with a line for each run. Errors are fractions."""
        flags = self._differing_flags()
        return to_csv([record_of(run, flags) for run in self.runs])

    def _differing_flags(self) -> list[str]:
        return differing_flags(self.runs, not_compared=self.not_compared)


def _laid_out(lines: Sequence[Sequence[str]], form: Format) -> list[str]:
    """Lay out a heading and a line for each run; as a text, turned round if there are few."""
    if form == "markdown":
        return markdown(lines)
    if form == "latex":
        return latex(lines)
    return aligned(list(zip(*lines, strict=True)) if len(lines) - 1 <= FEW_RUNS else lines).split("\n")


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
        *_network_and_data(run),
        *(shown(run, flag) for flag in flags),
        f"{len(run.rows)} of {run.n_epochs}",
        str(best.epoch) if best else UNKNOWN,
        _formatted(best.kept_error if best else None, ".2%"),
        _formatted(run.test_error, ".2%"),
        f"{run.parameters:,}",
        _formatted(median([row.seconds for row in run.rows]), ",.1f"),
        _formatted(median([row.images_per_second for row in run.rows]), ",.0f"),
        _formatted(peak_memory(run.rows), ",.0f"),
    ]


def _names_of_group(flags: list[str]) -> list[str]:
    return [
        "runs",
        "network",
        "data set",
        *(f"--{plain(flag)}" for flag in flags),
        "epochs",
        "validation error (%)",
        "test error (%)",
        "n",
        "seeds",
        "parameters",
    ]


def _cells_of_group(group: SeedGroup, flags: list[str]) -> list[str]:
    first, valid_error = group.runs[0], group.valid_error
    return [
        group.name,
        *_network_and_data(first),
        *(shown(first, flag) for flag in flags),
        str(first.n_epochs),
        percent(valid_error) if valid_error else UNKNOWN,
        percent(group.test_error),
        str(len(group.runs)),
        plain(", ".join(map(str, group.seeds))),
        f"{first.parameters:,}",
    ]


def _network_and_data(run: RunRecord) -> list[str]:
    return [f"L={shown(run, 'depth')}, k={shown(run, 'growth_rate')}", shown(run, "dataset")]


def _formatted(value: float | None, spec: str) -> str:
    return UNKNOWN if value is None else format(value, spec)
