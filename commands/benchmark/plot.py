"""The picture of memory against depth."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from commands.benchmark.depths import ByDepth
from commands.benchmark.table import MB
from commands.networks import name_of
from commands.plots import NOTE_COLOUR, add_title, png

# Ours stand out, rivals are grey.
COLOURS = {"naive": "#e4572e", "checkpoint": "#4c78a8", "buffer": "#2a9d5c", "buffer_fast": "#7bbf3f"}
RIVAL_COLOURS = ("#8a8a8a", "#6d6d6d", "#a8a8a8", "#555555")
LABEL_GAP = 0.05  # of the height of the panel, between two labels


def draw_depths(measured: ByDepth) -> bytes:
    """Draw a line for each variant on logarithmic axes; return a PNG of 1440 x 960 pixels.

    There a power of the depth is a straight line, and quadratic growth is steeper than linear growth.

    Args:
        measured: Two or more depths make lines, one makes points.
    """
    figure = Figure(figsize=(9, 6), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("log")
    panel.set_yscale("log")
    rivals = [name for name in measured.peaks if name not in COLOURS]
    colours = COLOURS | {name: RIVAL_COLOURS[i % len(RIVAL_COLOURS)] for i, name in enumerate(rivals)}
    for name, peaks in measured.peaks.items():
        style = {"linewidth": 2.2, "zorder": 3} if name in COLOURS else {"linewidth": 1.3, "linestyle": "--"}
        values = [peak / MB for peak in peaks]
        panel.plot(measured.depths, values, color=colours[name], marker="o", markersize=4.5, label=name, **style)
    _label_axes(panel, measured)
    _label_lines(panel, measured, colours)
    case = measured.case
    batch = f"batch {case.batch_size} of {case.images}, {case.precision}"
    add_title(
        figure,
        "Peak memory of a training step against depth",
        f"{name_of(case.network)}, k={case.growth_rate}, {batch}",
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
    """Write the name of each line and its last value to the right of it, moved apart where lines lie close."""
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
    """Move ascending heights apart to a gap at least; those that are too close stay centred around their mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _places(groups[-1], gap)[0] < _places(groups[-2], gap)[-1] + gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [place for group in groups for place in _places(group, gap)]


def _places(group: Sequence[float], gap: float) -> list[float]:
    middle, half = sum(group) / len(group), (len(group) - 1) / 2
    return [middle + (i - half) * gap for i in range(len(group))]
