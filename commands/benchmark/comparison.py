"""The comparison of all variants on one network and one batch, and the table of its results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from commands.benchmark.agreement import Agreement, Observed, agreement_in_fp64, agreements_in_precision, observe
from commands.benchmark.convolutions import ConvolutionsAlone
from commands.benchmark.measure import (
    Memory,
    Timed,
    cells_of,
    columns_of,
    memory_errors_as_one_line,
    memory_of_step,
    paired_seconds,
)
from commands.benchmark.on_gpu import HOST_BATCH, capture, graphs_of, host_seconds
from commands.benchmark.step import MB, Case, Step, conditions, record_of
from commands.benchmark.traffic import gpu_of, trace_step
from commands.benchmark.variants import NAIVE, Variant, is_in_torchvision, random_weights
from commands.memory import GB
from commands.tables import aligned, to_csv
from train.terminal import progress

DEFAULT = "buffer"  # the meaning of --efficient True
SMALL = "buffer_small"


@dataclass
class Row:
    """The measurements of a variant.

    Attributes:
        variant: The variant that was measured.
        memory: Memory of a step.
        updates: How often a step updates running statistics: once, unless a norm runs twice.
        bytes_moved: Bytes that a GPU's kernels read and write in a step; None if they were not counted.
        host: Seconds of each round in which Python gives a GPU the work of a step; empty without a GPU.
        seconds: Seconds of a step in each round.
        ratios: Seconds of each round over those of the faster naive in the same round, both in a CUDA graph or neither.
        in_graph: Whether the step is in a CUDA graph, which takes the memory of the step that was captured.
    """

    variant: Variant
    memory: Memory
    updates: int
    bytes_moved: int | None = None
    in_graph: bool = False
    host: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the row in the table."""
        return f"{self.variant.name}, CUDA graph" if self.in_graph else self.variant.name

    def cells(self, baseline: "Row") -> list[str]:
        """The row as it is printed."""
        mark = " *" if self.updates > 1 else ""
        cells = [self.name + mark, self.variant.memory_format, f"{self.memory.peak / MB:,.1f}"]
        cells += [f"{self.memory.peak / baseline.memory.peak:.2f}", f"{self.memory.kept / MB:,.1f}"]
        if self.memory.reserved is not None:
            cells.append(f"{self.memory.reserved / MB:,.1f}")
        cells.append("-" if self.bytes_moved is None else f"{self.bytes_moved / GB:,.2f}")
        if baseline.seconds:
            for values in (self.seconds, self.ratios):
                cells += cells_of(values, ".3f") if values else ["-", ""]
        if baseline.host:
            cells.append(f"{statistics.median(self.host):.3f}" if self.host else "-")
        return cells

    def record(self) -> dict[str, object]:
        """The row for CSV, in bytes and seconds."""
        record: dict[str, object] = {"variant": self.name, "memory_format": self.variant.memory_format}
        record |= {"peak_bytes": self.memory.peak, "kept_bytes": self.memory.kept}
        record |= {"reserved_bytes": self.memory.reserved, "bytes_moved": self.bytes_moved}
        record |= columns_of("seconds", self.seconds) | columns_of("ratio", self.ratios)
        record |= {"host_seconds": statistics.median(self.host) if self.host else None}
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
        convolutions: Seconds of naive's convolutions alone in each round.
    """

    case: Case
    rows: list[Row]
    baseline: Row
    agreements: list[Agreement]
    parameters: int
    convolutions: list[float]

    def as_text(self) -> str:
        """The table with its title, its legend, and how it was measured."""
        header = ["", "format", "peak MB", "of naive", "kept MB"]
        header += [] if self.baseline.memory.reserved is None else ["reserved MB"]
        header += ["GB moved"]
        header += ["s/step", "(min - max)", "ratio", "(min - max)"] if self.baseline.seconds else []
        header += ["host s"] if self.baseline.host else []
        rows = aligned([header, *(row.cells(self.baseline) for row in self.rows)])
        title = f"{self.case.title}, {self.parameters:,} parameters"
        return "\n".join([title, "", rows, "", *exceptions(self.rows), *self._times_convolutions(), *self._legend()])

    def _times_convolutions(self) -> list[str]:
        """How much longer than its convolutions the default takes, if time was measured."""
        if not self.convolutions:
            return []
        buffer = next(row for row in self.rows if row.variant.name == DEFAULT)
        ratios = [one / alone for one, alone in zip(buffer.seconds, self.convolutions, strict=True)]
        (alone, spread), (times, of_times) = (cells_of(values, ".3f") for values in (self.convolutions, ratios))
        return [
            f"naive's convolutions alone take {alone} s {spread}, forward and backward; "
            f"{DEFAULT} takes {times} {of_times} times that"
        ]

    def _legend(self) -> list[str]:
        lines = [
            "step: forward, loss and backward, without the optimizer",
            "peak: most bytes alive in a step, above parameters, buffers, gradients and the batch; MB of 10^6 bytes",
            "kept: the bytes of these that are alive when the forward pass has ended",
        ]
        if self.baseline.memory.reserved is not None:
            lines.append("reserved: the most that the GPU's allocator held, for everything")
        major, minor = gpu_of(self.case.device)
        lines.append(
            "GB moved: 10^9 bytes that all kernels of a step read and write, counted and not measured, on a GPU of "
            f"compute capability {major}.{minor}"
        )
        if self.baseline.seconds:
            naive = f"naive {self.baseline.variant.memory_format}, the faster of the two"
            lines.append(f"s/step and ratio: medians over the rounds; a ratio is taken within a round, to {naive}")
        if self.baseline.host:
            lines.append(
                f"host: seconds in which Python launches a step, with {HOST_BATCH} images so that it never waits"
            )
        if any(row.in_graph for row in self.rows):
            lines.append("CUDA graph: the same step, captured; its ratio is to the faster naive in a CUDA graph")
        for updates in sorted({row.updates for row in self.rows if row.updates > 1}):
            lines.append(f"*: updates running statistics {updates} times in a step")
        if not is_in_torchvision(self.case.network):
            lines.append("torchvision has no row: its DenseNet always has bottlenecks and halves the channels")
        lines.append("relative difference to naive in loss, gradients, running statistics (fp64: the largest of all):")
        lines += [f"  {agreement.describe()}" for agreement in self.agreements]
        return [*lines, conditions(self.case, rounds=len(self.baseline.seconds))]

    def as_csv(self) -> bytes:
        """A line for each row, with the case in further columns."""
        constants: dict[str, object] = {"rounds": len(self.baseline.seconds)} | record_of(self.case)
        constants |= columns_of("convolutions_seconds", self.convolutions)
        return to_csv([row.record() | constants for row in self.rows])


def exceptions(rows: Sequence[Row]) -> list[str]:
    """Say where "buffer", the default, is not the best choice at this size: a line on memory, a line on time.

    Args:
        rows: One for each variant; ratios of time are to the faster naive.
    """
    buffer = next(row for row in rows if row.variant.name == DEFAULT)
    peak = buffer.memory.peak
    others = [row for row in rows if row.variant.name != SMALL]  # which takes less memory by intention
    # Naive has two rows; of rows with the same name, the one that takes the least stays.
    smaller = {
        row.variant.name: row.memory.peak for row in sorted(others, key=_peak, reverse=True) if _peak(row) < peak
    }
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
    parameters = sum(parameter.numel() for parameter in steps[0].network.parameters())
    if not rounds:
        return Comparison(case, rows, rows[0], agreements, parameters, [])
    rows, timed = _with_graphs(rows, steps, case, rounds)
    alone = ConvolutionsAlone(variants[0], case)
    alone()  # as all steps have run before
    *seconds, convolutions = paired_seconds([*timed, alone], rounds=rounds)
    for row, of_row in zip(rows, seconds, strict=True):
        row.seconds = of_row
    _add_ratios([row for row in rows if row.in_graph])
    baseline = _add_ratios([row for row in rows if not row.in_graph])
    assert baseline is not None
    return Comparison(case, rows, baseline, agreements, parameters, convolutions)


def _with_graphs(rows: Sequence[Row], steps: Sequence[Step], case: Case, rounds: int) -> tuple[list[Row], list[Timed]]:
    """Measure the host's time of all rows, and add rows for steps in CUDA graphs where the device has them.

    Returns:
        All rows, and what is to be timed for each of them.
    """
    for row, step in zip(rows, steps, strict=True):
        row.host = host_seconds(row.variant, step, case, rounds=rounds)
    all_rows = [*rows]
    timed: list[Timed] = [*steps]
    graphs = graphs_of(case.device)
    for row, step in zip(rows, steps, strict=True):
        captured = capture(row.variant, step, graphs) if graphs and not row.variant.is_compiled else None
        if captured:
            all_rows.append(replace(row, in_graph=True, host=[]))
            timed.append(captured)
    return all_rows, timed


def _add_ratios(rows: Sequence[Row]) -> Row | None:
    """Fill in the ratios of rows to the faster naive among them, and return it; None if none of them is naive."""
    naive = [row for row in rows if row.variant.name == NAIVE]
    if not naive:
        return None
    baseline = min(naive, key=lambda row: statistics.median(row.seconds))
    for row in rows:
        row.ratios = [one / other for one, other in zip(row.seconds, baseline.seconds, strict=True)]
    return baseline


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
        traffic = None if variant.is_compiled else trace_step(variant, case, gpu_of(case.device)).bytes_moved
        rows.append(Row(variant, memory, updates, traffic))
        steps.append(step)
        if variant.is_ours:
            observed.append((variant.name, seen))
    return rows, steps, observed
