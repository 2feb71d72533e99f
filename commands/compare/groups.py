"""Groups of runs that differ in their seed alone, with mean and standard deviation of their errors."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.compare.flags import comparable, compared_flags
from commands.run_record import RunRecord
from commands.spread import Spread
from commands.tables import plain
from train.run.history import best_row

OWN_COLUMNS = ("dataset", "depth", "growth_rate")  # which are not among the compared flags


@dataclass(frozen=True)
class SeedGroup:
    """Finished runs that differ in their seed alone.

    Attributes:
        name: The folder that holds them and no other kind of run, or the first of them and the number of the others.
        runs: Two or more, each with another seed.
        repeated: Further runs with the seed of one of these, which are not counted.
    """

    name: str
    runs: tuple[RunRecord, ...]
    repeated: tuple[RunRecord, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.flags["seed"] for run in self.runs]

    @property
    def test_error(self) -> Spread:
        """Mean and deviation of the test errors, as fractions."""
        return Spread.of([run.test_error for run in self.runs if run.test_error is not None])

    @property
    def valid_error(self) -> Spread | None:
        """The same of the validation errors of the chosen epochs; None for runs without validation images."""
        errors = [best.kept_error for run in self.runs if (best := best_row(run.rows))]
        known = [error for error in errors if error is not None]
        return Spread.of(known) if known else None


def group_by_seed(runs: Sequence[RunRecord], *, not_compared: Collection[str]) -> list[SeedGroup]:
    """Find the groups of two or more finished runs that differ in their seed alone.

    Args:
        runs: One or more.
        not_compared: Flags in which the runs of a group may differ as well, see `compared_flags`.
    """
    flags = [name for name in compared_flags(runs, not_compared=not_compared) if name != "seed"]
    alike: dict[Hashable, list[RunRecord]] = {}
    for run in runs:
        alike.setdefault(_all_but_seed(run, flags), []).append(run)
    found = (_group_of(members, all_runs=runs) for members in alike.values())
    return [group for group in found if group]


def _all_but_seed(run: RunRecord, flags: Sequence[str]) -> Hashable:
    values = tuple(comparable(run, name) for name in (*OWN_COLUMNS, *flags))
    return values, run.n_epochs, run.parameters


def _group_of(alike: Sequence[RunRecord], *, all_runs: Sequence[RunRecord]) -> SeedGroup | None:
    """The group of runs that are alike except for their seeds; None if fewer than two with known seeds are finished."""
    by_seed: dict[int, list[RunRecord]] = {}
    for run in alike:
        seed = run.flags.get("seed")
        if type(seed) is int and run.test_error is not None and len(run.rows) == run.n_epochs:
            by_seed.setdefault(seed, []).append(run)
    if len(by_seed) < 2:
        return None
    folder = alike[0].path.parent
    in_folder = [run for run in all_runs if run.path.parent == folder]
    counted = tuple(first for first, *_ in by_seed.values())
    is_of_folder = folder != Path() and in_folder == list(alike)
    return SeedGroup(
        name=plain(folder) if is_of_folder else f"{plain(counted[0].path)} and {len(counted) - 1} more",
        runs=counted,
        repeated=tuple(run for _, *others in by_seed.values() for run in others),
    )
