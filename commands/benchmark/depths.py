"""Peak memory and time of a step against depth: the tables, and the plot of memory."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from torch.utils.flop_counter import FlopCounterMode

from commands.benchmark.measure import memory_errors_as_one_line, paired_seconds, peak_of_step
from commands.benchmark.step import MB, Case, conditions
from commands.benchmark.variants import Variant, without_second_naive
from commands.networks import name_of
from commands.plots import NOTE_COLOUR, add_title, png
from commands.tables import aligned
from train.terminal import progress

MEANING_OF_GFLOP = "where ms/GFLOP does not grow, time grows as the work of the convolutions does"
LARGEST_BATCH = 16  # 3 GB for the naive DenseNet-BC at L=250 k=12, and seconds a step


# Our strategies stand out, other implementations are grey.
COLOURS = {
    "naive": "#e4572e",
    "checkpoint": "#4c78a8",
    "buffer": "#2a9d5c",
    "buffer_fast": "#7bbf3f",
    "buffer_small": "#1b6e5a",
}
GREYS = ("#8a8a8a", "#6d6d6d", "#a8a8a8", "#555555")
LABEL_GAP = 0.05  # of the height of the panel, between two labels


@dataclass(frozen=True)
class ByDepth:
    """Memory and time of a step at several depths.

    Attributes:
        depths: The depths, ascending.
        peaks: Peak bytes above weights, gradients and batch at each depth, by variant.
        seconds: Median time of a step at each depth, by variant; empty if it was not measured.
        flops: Floating-point operations of the naive network's step at each depth.
        case: Growth rate, batch and precision, the same at all depths.
        nonlinearity: By variant, the relative difference, at the smallest depth, between the peak with three times this
            batch and the line through the peaks with this batch and twice this batch.
    """

    depths: list[int]
    peaks: dict[str, list[int]]
    seconds: dict[str, list[float]]
    flops: list[int]
    case: Case
    nonlinearity: dict[str, float]

    def as_text(self) -> str:
        """Tables with a row for each variant: MB, and seconds and milliseconds per GFLOP if time was measured."""
        tables = [self._table("peak MB", self.peaks, lambda peak, flops: f"{peak / MB:,.1f}")]
        if self.seconds:
            tables.append(self._table("s/step", self.seconds, lambda seconds, flops: f"{seconds:.3f}"))
            per_gflop = self._table("ms/GFLOP", self.seconds, lambda seconds, flops: f"{1e12 * seconds / flops:.2f}")
            gflop = ", ".join(f"{flops / 1e9:,.0f}" if flops > 1e10 else f"{flops / 1e9:.2g}" for flops in self.flops)
            tables += [per_gflop, f"GFLOP of a step of naive: {gflop}; {MEANING_OF_GFLOP}"]
        return "\n\n".join([*tables, self.note()])

    def _table(self, title: str, values: Mapping[str, Sequence[float]], form: Callable[[float, int], str]) -> str:
        header = [f"{title}, batch {self.case.batch_size}", *(f"L={depth}" for depth in self.depths)]
        return aligned([header, *([name, *map(form, of_depths, self.flops)] for name, of_depths in values.items())])

    def note(self) -> str:
        """The memory of other batches, and the conditions of the measurement."""
        images, worst = self.case.batch_size, max(self.nonlinearity, key=self.nonlinearity.__getitem__)
        return (
            f"peak memory grows linearly with the batch: at L={self.depths[0]}, {3 * images} images take what {images} "
            f"and {2 * images} predict, within {self.nonlinearity[worst]:.1%} ({worst})\n{conditions(self.case)}"
        )


def measure_by_depth(variants: Sequence[Variant], case: Case, *, depths: Sequence[int], rounds: int) -> ByDepth:
    """Measure variants at all depths, and how far memory deviates from a linear function of the batch.

    Compiled variants are left out: to compile at each depth would take hours.

    Args:
        variants: The first two are naive in both memory formats; the second is left out.
        case: At most LARGEST_BATCH of its images are used; its depth is not.
        depths: The depths, in any order.
        rounds: How often each variant is timed; 0 measures memory only.
    """
    chosen = [variant for variant in without_second_naive(variants) if not variant.is_compiled]
    images = min(case.batch_size, LARGEST_BATCH)
    cases = [case.resized(depth=depth, batch_size=images) for depth in sorted(set(depths))]
    sizes = [(variant, case) for variant in chosen for case in cases]
    measured = [_peak(variant, case) for variant, case in progress(sizes, "memory by depth")]
    seconds = [_seconds(chosen, case, rounds) for case in cases] if rounds else []
    return ByDepth(
        depths=[case.network.depth for case in cases],
        peaks={variant.name: measured[i * len(cases) :][: len(cases)] for i, variant in enumerate(chosen)},
        seconds={variant.name: [of_case[i] for of_case in seconds] for i, variant in enumerate(chosen) if seconds},
        flops=[_flops(chosen[0], case) for case in cases],
        case=cases[0],
        nonlinearity={variant.name: _nonlinearity(variant, cases[0]) for variant in chosen},
    )


def _seconds(variants: Sequence[Variant], case: Case, rounds: int) -> list[float]:
    """Median time of a step of each variant; variants take turns, and the first turn does not count."""
    steps = [variant.step(case) for variant in variants]
    return [statistics.median(of_step[1:]) for of_step in paired_seconds(steps, rounds=rounds + 1)]


def _flops(variant: Variant, case: Case) -> int:
    step = variant.step(case)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _peak(variant: Variant, case: Case) -> int:
    with memory_errors_as_one_line(variant.name, case):
        return peak_of_step(variant.step(case))


def _nonlinearity(variant: Variant, case: Case) -> float:
    once, twice, thrice = (_peak(variant, case.resized(batch_size=n * case.batch_size)) for n in (1, 2, 3))
    return abs(thrice / (2 * twice - once) - 1)


def draw_depths(measured: ByDepth) -> bytes:
    """Draw a line for each variant on logarithmic axes; return a PNG of 1440 x 960 pixels.

    On such axes a power of the depth is a straight line, and quadratic growth is steeper than linear growth.

    Args:
        measured: With two or more depths there are lines, with one there are points.
    """
    figure = Figure(figsize=(9, 6), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("log")
    panel.set_yscale("log")
    others = [name for name in measured.peaks if name not in COLOURS]
    colours = COLOURS | {name: GREYS[i % len(GREYS)] for i, name in enumerate(others)}
    for name, peaks in measured.peaks.items():
        style: dict[str, Any] = (
            {"linewidth": 2.2, "zorder": 3} if name in COLOURS else {"linewidth": 1.3, "linestyle": "--"}
        )
        values = [peak / MB for peak in peaks]
        panel.plot(measured.depths, values, color=colours[name], marker="o", markersize=4.5, label=name, **style)
    _label_axes(panel, measured)
    _label_lines(panel, measured, colours)
    case = measured.case
    add_title(
        figure,
        "Peak memory of a training step against depth",
        f"{name_of(case.network.network)}, k={case.network.growth_rate}, {case.batch}, {case.precision}",
    )
    figure.supxlabel(measured.note(), fontsize=8, color=NOTE_COLOUR)
    return png(figure)


def _label_axes(panel: Axes, measured: ByDepth) -> None:
    panel.set_xticks(measured.depths, [str(depth) for depth in measured.depths])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,g}"))
    panel.set_xlabel("depth L")
    panel.set_ylabel("peak memory above weights, gradients and batch (MB)")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.04)


def _label_lines(panel: Axes, measured: ByDepth, colours: dict[str, str]) -> None:
    """Write the name and the last value of each line to its right, moved apart where lines are close."""
    names = sorted(measured.peaks, key=lambda name: measured.peaks[name][-1])
    ends = [measured.peaks[name][-1] / MB for name in names]
    to_height = panel.transData + panel.transAxes.inverted()
    heights = [to_height.transform((measured.depths[-1], end))[1] for end in ends]
    for name, end, height in zip(names, ends, spread(heights, LABEL_GAP), strict=True):
        panel.annotate(
            f"{name}  {end:,.0f} MB",
            xy=(measured.depths[-1], end),
            xytext=(1.02, height),
            textcoords="axes fraction",
            color=colours[name],
            fontsize=9.5,
            fontweight="bold" if name in COLOURS else "normal",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.6, "alpha": 0.6},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart until none are closer than a gap; close ones stay centred on their mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _places(groups[-1], gap)[0] < _places(groups[-2], gap)[-1] + gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [place for group in groups for place in _places(group, gap)]


def _places(group: Sequence[float], gap: float) -> list[float]:
    middle, half = sum(group) / len(group), (len(group) - 1) / 2
    return [middle + (i - half) * gap for i in range(len(group))]
