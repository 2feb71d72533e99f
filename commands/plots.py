"""Parts shared by all plots: title, colours, panels over epochs, limits of axes, learning rates, and the PNG itself."""

import io
import warnings
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from commands.tables import plain
from train.run.history import Row

NOTE_COLOUR = "#666666"
FEW_EPOCHS = 10  # a shorter line is always shown in full
DWARFED = 5  # times the maximum of the last third: higher values would press that third to the bottom of the panel
NEGLIGIBLE = 1e-30  # smaller values are treated as 0, because rounding would spoil the axis
MANY_RATES = 8  # a schedule with more distinct learning rates is a smooth curve, not a step schedule
LONGEST_TITLE = 88  # characters of a line that fit above the narrowest plot


def png(figure: Figure) -> bytes:
    """Render a figure as a PNG; equal figures give equal bytes. Characters missing from the font become boxes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Without this the file would name the version of matplotlib.
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def note_on_labels(*, smoothed: bool, mixed: bool) -> str:
    """Say how labels of training images were changed, which marks their loss; empty if they were not."""
    kinds = [kind for kind, is_so in (("smoothed", smoothed), ("mixed", mixed)) if is_so]
    return f"{' and '.join(kinds)} labels" if kinds else ""


def add_title(figure: Figure, *lines: str) -> None:
    """Write lines of text above all panels. A "$" stays a dollar sign and does not start mathematics."""
    text = "\n".join(plain(line, longest=LONGEST_TITLE) for line in lines)
    figure.suptitle(text, fontsize=11, parse_math=False)


def top_of(lines: Sequence[Sequence[float]], *, visible: Sequence[float] = ()) -> float:
    """Choose the upper end of an axis that starts at 0.

    It lies above all values, except where early values of a line dwarf its last third: these are cut off.

    Args:
        lines: The values of each line, one or more, none of them negative.
        visible: Further values that must not be cut off.
    """
    return _end(1.08 * max([*map(_height, lines), *visible], default=0))


def _height(line: Sequence[float]) -> float:
    highest, limit = max(line), DWARFED * max(line[2 * len(line) // 3 :])
    is_dwarfed = len(line) >= FEW_EPOCHS and 1.5 * limit < highest
    return limit if is_dwarfed else highest


def _end(value: float) -> float:
    """The end of an axis from 0 to a value: 1 if the value is 0."""
    return value if value > NEGLIGIBLE else 1.0


def make_panels(figure: Figure, *, last_epoch: int) -> tuple[Axes, Axes, Axes]:
    """Add three empty panels over epochs: loss, learning rate below it, and error to the right of both."""
    grid = figure.add_gridspec(2, 2, height_ratios=(3.2, 1), width_ratios=(1, 1.15))
    loss = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0])
    error = figure.add_subplot(grid[:, 1])
    margin = 0.02 * (last_epoch - 1) + 0.15
    for panel in (loss, rate, error):
        panel.set_xlim(1 - margin, last_epoch + margin)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    loss.tick_params(labelbottom=False)
    rate.set(xlabel="epoch", ylabel="learning rate")
    error.set_xlabel("epoch")
    return loss, rate, error


def draw_rates(panel: Axes, rows: Sequence[Row], *, color: str, linestyle: str = "-", linewidth: float) -> None:
    """Plot the learning rate of each epoch as steps; a single epoch is a point."""
    is_point = len(rows) == 1
    panel.plot(
        [row.epoch for row in rows],
        [row.learning_rate for row in rows],
        color=color,
        linestyle=linestyle,
        linewidth=linewidth,
        marker="o" if is_point else None,
        markersize=4,
        drawstyle="default" if is_point else "steps-mid",
    )


def scale_rates(panel: Axes, schedules: Sequence[set[float]]) -> None:
    """Choose the axis of learning rates: logarithmic if the rates of step schedules differ by factors, else from 0.

    On a logarithmic axis a smooth curve, such as half a cosine, is shown down to a tenth of the lowest step.

    Args:
        panel: The panel of learning rates.
        schedules: The distinct learning rates of each run, none of them negative.
    """
    rates = {rate for schedule in schedules for rate in schedule if rate > NEGLIGIBLE}
    steps = {rate for schedule in schedules if len(schedule) <= MANY_RATES for rate in schedule} & rates
    low, high = min(steps, default=0), max(rates, default=0)
    if not steps or max(steps) < 4 * low or high > 1e6 * low:
        panel.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=(1, 2, 5, 10)))
        panel.set_ylim(0, _end(1.15 * high))
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(numticks=5))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_ylim(max(min(rates), low / 10) / 2, high * 2)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda rate, position: f"{rate:g}"))
