"""Mean and standard deviation of the errors of runs that differ in their seed, and how they are printed."""

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """Mean and spread of some values.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation as an estimate from a sample, divided by n - 1; None for a single value.
        n: How many there are.
    """

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Collection[float]) -> Self:
        """Return the spread of one or more values."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


def in_percent(spread: Spread) -> str:
    """Write fractions in percent as papers do: "4.69 ± 0.10, n = 3"."""
    return f"{percent(spread)}, n = {spread.n}"


def percent(spread: Spread) -> str:
    """Write fractions in percent without their number: "4.69 ± 0.10"."""
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    return f"{100 * spread.mean:.2f}{deviation}"
