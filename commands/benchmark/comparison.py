"""The comparison of all variants on one network and one batch, and the table of its results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from commands.benchmark.agreement import Agreement, Observed, agreement_in_fp64, agreements_in_precision, observe
from commands.benchmark.measure import (
    Memory,
    cells_of,
    columns_of,
    memory_errors_as_one_line,
    memory_of_step,
    paired_seconds,
)
from commands.benchmark.step import MB, Case, Step, conditions, record_of
from commands.benchmark.variants import Variant, is_in_torchvision, random_weights
from commands.tables import aligned, to_csv
from train.terminal import progress

DEFAULT = "buffer"  # the meaning of --efficient True


@dataclass
class Row:
    """The measurements of a variant.

    Attributes:
        variant: The variant that was measured.
        memory: Memory of a step.
        updates: How often a step updates running statistics: once, unless a norm runs twice.
        seconds: Seconds of a step in each round.
        ratios: Seconds of each round over those of the faster naive in the same round.
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
                cells += cells_of(values, ".3f")
        return cells

    def record(self) -> dict[str, object]:
        """The row for CSV, in bytes and seconds."""
        record: dict[str, object] = {"variant": self.variant.name, "memory_format": self.variant.memory_format}
        record |= {"peak_bytes": self.memory.peak, "kept_bytes": self.memory.kept}
        record |= {"reserved_bytes": self.memory.reserved}
        record |= columns_of("seconds", self.seconds) | columns_of("ratio", self.ratios)
        return record | {"running_statistics_updates": self.updates}


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison.

    Attributes:
        case: The network and the batch.
        rows: One for each variant; the first two are naive in both memory formats.
        baseline: The row that ratios refer to.
        agreements: Differences between our strategies and naive.
        parameters: Number of parameters.
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
            "kept: the bytes of these that are alive when the forward pass has ended",
        ]
        if self.baseline.memory.reserved is not None:
            lines.append("reserved: the most that the GPU's allocator held, for everything")
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
    """Say where "buffer", the default, is not the best choice at this size: a line on memory, a line on time.

    Args:
        rows: One for each variant; ratios of time are to the faster naive.
    """
    buffer = next(row for row in rows if row.variant.name == DEFAULT)
    peak = buffer.memory.peak
    # Naive has two rows; of rows with the same name, the one that takes the least stays.
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


def compare(variants: Sequence[Variant], case: Case, *, rounds: int) -> Comparison:
    """Check that our strategies agree with naive, then measure memory and time of all variants.

    Args:
        variants: The first two are naive in both memory formats.
        case: The network and the batch.
        rounds: How often each variant is timed; 0 measures memory only.

    Raises:
        RunError: If a strategy does not agree with naive, or memory runs out.
    """
    agreements = [agreement_in_fp64(variants, case)]
    agreements[0].require()
    rows, steps, observed = _measure_memory(variants, case)
    if not case.network.drop_rate:  # with dropout, strategies may drop other values
        agreements += agreements_in_precision(case, observed)
    for agreement in agreements:
        agreement.require()
    for row, seconds in zip(rows, paired_seconds(steps, rounds=rounds), strict=True):
        row.seconds = seconds
    baseline = min(rows[:2], key=lambda row: statistics.median(row.seconds or [0]))
    for row in rows:
        row.ratios = [one / other for one, other in zip(row.seconds, baseline.seconds, strict=True)]
    parameters = sum(parameter.numel() for parameter in steps[0].network.parameters())
    return Comparison(case, rows, baseline, agreements, parameters)


def _measure_memory(
    variants: Sequence[Variant], case: Case
) -> tuple[list[Row], list[Step], list[tuple[str, Observed]]]:
    """Record the results of each variant's first step, and measure the memory of the steps after it."""
    weights = random_weights(variants[0], case)
    rows, steps, observed = [], [], []
    for variant in progress(variants, "memory"):
        with memory_errors_as_one_line(variant.name, case):
            step = variant.step(case, weights)
            seen = observe(step)
            memory = memory_of_step(step)
        updates = max(int(value) for name, value in seen.items() if name.endswith("num_batches_tracked"))
        rows.append(Row(variant, memory, updates))
        steps.append(step)
        if variant.is_ours:
            observed.append((variant.name, seen))
    return rows, steps, observed
