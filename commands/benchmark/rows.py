"""The result of a comparison, and how it is printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from commands.benchmark.agreement import Agreement
from commands.benchmark.measure import Memory
from commands.benchmark.rivals import is_in_torchvision
from commands.benchmark.step import Case
from commands.benchmark.table import MB, conditions, record_of
from commands.benchmark.variants import Variant
from commands.tables import aligned, to_csv

DEFAULT = "buffer"  # what --efficient True stands for


@dataclass
class Row:
    """What was measured of a variant.

    Attributes:
        variant: Which one.
        memory: Of a step.
        updates: How often a step updates running statistics: once, unless a norm runs twice.
        seconds: Of each round.
        ratios: Of each round, to the faster naive in the same round.
    """

    variant: Variant
    memory: Memory
    updates: int
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def cells(self, baseline: "Row") -> list[str]:
        """The row as it is printed."""
        mark = " *" if self.updates > 1 else ""
        cells = [self.variant.name + mark, self.variant.memory_format, f"{self.memory.peak / MB:,.1f}"]
        cells += [f"{self.memory.peak / baseline.memory.peak:.2f}", f"{self.memory.kept / MB:,.1f}"]
        if self.memory.reserved is not None:
            cells.append(f"{self.memory.reserved / MB:,.1f}")
        for values in (self.seconds, self.ratios):
            if values:
                cells += [f"{statistics.median(values):.3f}", f"({min(values):.3f} - {max(values):.3f})"]
        return cells

    def record(self) -> dict[str, object]:
        """The row as CSV has it, in bytes and seconds."""
        record: dict[str, object] = {"variant": self.variant.name, "memory_format": self.variant.memory_format}
        record |= {"peak_bytes": self.memory.peak, "kept_bytes": self.memory.kept}
        record |= {"reserved_bytes": self.memory.reserved}
        for name, values in (("seconds", self.seconds), ("ratio", self.ratios)):
            for kind, pick in (("median", statistics.median), ("min", min), ("max", max)):
                record[f"{name}_{kind}"] = pick(values) if values else None
        return record | {"running_statistics_updates": self.updates}


@dataclass(frozen=True)
class Comparison:
    """What the table shows.

    Attributes:
        case: The network and the batch.
        rows: The first two are naive in both memory formats.
        baseline: The row that ratios refer to.
        agreements: How far our strategies are from naive.
        parameters: Number of them.
    """

    case: Case
    rows: list[Row]
    baseline: Row
    agreements: list[Agreement]
    parameters: int

    def as_text(self) -> str:
        """The table with its title, its legend, and how it was measured."""
        header = ["", "format", "peak MB", "of naive", "kept MB"]
        header += [] if self.baseline.memory.reserved is None else ["reserved MB"]
        header += ["s/step", "(min - max)", "ratio", "(min - max)"] if self.baseline.seconds else []
        rows = aligned([header, *(row.cells(self.baseline) for row in self.rows)])
        title = f"{self.case.title}, {self.parameters:,} parameters"
        return "\n".join([title, "", rows, "", *exceptions(self.rows), *self._legend()])

    def _legend(self) -> list[str]:
        lines = [
            "step: forward, loss and backward, without the optimizer",
            "peak: most bytes alive in a step, above parameters, buffers, gradients and the batch; MB of 10^6 bytes",
            "kept: of these, what is alive when the forward pass has ended",
        ]
        if self.baseline.memory.reserved is not None:
            lines.append("reserved: what the GPU's allocator held at most, for everything")
        if self.baseline.seconds:
            naive = f"naive {self.baseline.variant.memory_format}, the faster of the two"
            lines.append(f"s/step and ratio: medians over the rounds; a ratio is taken within a round, to {naive}")
        for updates in sorted({row.updates for row in self.rows if row.updates > 1}):
            lines.append(f"*: updates running statistics {updates} times in a step")
        if not is_in_torchvision(self.case.network):
            lines.append("torchvision has no row: its DenseNet always has bottlenecks and halves the channels")
        lines.append("relative difference to naive in loss, gradients, running statistics (fp64: the largest of all):")
        lines += [f"  {agreement.describe()}" for agreement in self.agreements]
        return [*lines, conditions(self.case, rounds=len(self.baseline.seconds))]

    def as_csv(self) -> bytes:
        """A line for each row, with the case in further columns."""
        constants = {"rounds": len(self.baseline.seconds)} | record_of(self.case)
        return to_csv([row.record() | constants for row in self.rows])


def exceptions(rows: Sequence[Row]) -> list[str]:
    """Say where "buffer", the default, is not the best choice at this size: lines about memory and about time.

    Args:
        rows: Of all variants; ratios of time are to the faster naive.
    """
    buffer = next(row for row in rows if row.variant.name == DEFAULT)
    peak = buffer.memory.peak
    # Naive has two rows; of those with a name, the one that takes the least stays.
    smaller = {row.variant.name: row.memory.peak for row in sorted(rows, key=_peak, reverse=True) if _peak(row) < peak}
    lines = []
    if smaller:
        listed = ", ".join(f"{name} ({least / MB:,.1f} MB)" for name, least in reversed(smaller.items()))
        lines.append(f"at this size these take less memory than {DEFAULT} ({peak / MB:,.1f} MB): {listed}")
    if buffer.ratios and statistics.median(buffer.ratios) > 1:
        lines.append(f"at this size {DEFAULT} takes {statistics.median(buffer.ratios):.2f} times the time of naive")
    return lines


def _peak(row: Row) -> int:
    return row.memory.peak
