"""What pictures have in common: a title, colours, an axis of epochs, limits, a panel of learning rates."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from commands.tables import plain
from train.run.history import Row

NOTE_COLOUR = "#666666"
SMOOTHED = "smoothed labels"  # what a training loss with label smoothing is of
FEW_EPOCHS = 10  # fewer are all drawn, however high
DWARFED = 5  # times the largest value of the last third: higher ones would press that third to the bottom
NOTHING = 1e-30  # too little to draw: rounding would spoil the axis
MANY_RATES = 8  # a schedule of more different rates is a curve, not stairs
LONGEST_TITLE = 88  # characters of a line that fit over the narrowest picture


def add_title(figure: Figure, *lines: str) -> None:
    """Write some lines above all panels, as text and never as mathematics."""
    text = "\n".join(plain(line, longest=LONGEST_TITLE) for line in lines)
    figure.suptitle(text, fontsize=11, parse_math=False)


def top_of(lines: Sequence[Sequence[float]], *, visible: Sequence[float] = ()) -> float:
    """Where an axis from 0 should end: above all values, unless early ones dwarf the last third of their line.

    Args:
        lines: What is drawn, each of one value or more, none of them negative.
        visible: Further values that must be seen.
    """
    return _end(1.08 * max([*map(_height, lines), *visible], default=0))


def _height(line: Sequence[float]) -> float:
    highest, limit = max(line), DWARFED * max(line[2 * len(line) // 3 :])
    is_dwarfed = len(line) >= FEW_EPOCHS and 1.5 * limit < highest
    return limit if is_dwarfed else highest


def _end(value: float) -> float:
    """Where an axis from 0 to a value ends: at 1 if there is nothing to see."""
    return value if value > NOTHING else 1.0


def make_panels(figure: Figure, *, last_epoch: int) -> tuple[Axes, Axes, Axes]:
    """Three empty panels with an axis of epochs: loss, learning rate below it, and error to the right of both."""
    grid = figure.add_gridspec(2, 2, height_ratios=(3.2, 1), width_ratios=(1, 1.15))
    loss, rate, error = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
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


def draw_rates(panel: Axes, rows: Sequence[Row], **style: object) -> None:
    """Draw the learning rate of each epoch; one epoch is a point."""
    style |= {"marker": "o", "markersize": 4} if len(rows) == 1 else {"drawstyle": "steps-mid"}
    panel.plot([row.epoch for row in rows], [row.learning_rate for row in rows], **style)


def scale_rates(panel: Axes, schedules: Sequence[set[float]]) -> None:
    """Choose the axis of learning rates: logarithmic where those of stairs differ by factors, else from 0.

    A curve among stairs, such as half a cosine, is drawn down to a tenth of the lowest stair.

    Args:
        panel: Theirs.
        schedules: The rates of each run, none of them negative.
    """
    rates = {rate for schedule in schedules for rate in schedule if rate > NOTHING}
    stairs = {rate for schedule in schedules if len(schedule) <= MANY_RATES for rate in schedule} & rates
    low, high = min(stairs, default=0), max(rates, default=0)
    if not stairs or max(stairs) < 4 * low or high > 1e6 * low:
        panel.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=(1, 2, 5, 10)))
        panel.set_ylim(0, _end(1.15 * high))
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(numticks=5))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_ylim(max(min(rates), low / 10) / 2, high * 2)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda rate, position: f"{rate:g}"))
