"""A plot of several runs: training loss, error and learning rate of each, and of groups that differ in the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from commands.compare.groups import SeedGroup
from commands.plots import add_title, draw_rates, make_panels, note_on_labels, png, scale_rates, top_of
from commands.run_record import RunRecord
from commands.spread import Spread, percent
from commands.tables import plain
from train.errors import UserError
from train.run.history import Row, best_row

# Most people can tell these apart, including those who confuse red and green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333", "#7a4fbf")
Dashes = Literal["-", "--", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", ":")
MOST_RUNS = len(COLOURS) * len(DASHES)
LINE_WIDTH = 1.3
BAND_OPACITY = 0.2
LONGEST_OF_TWO = 62  # characters of a legend label that leave room for a second column of labels


@dataclass(frozen=True)
class Style:
    """Colour and dashes of the lines of a run."""

    colour: str
    dashes: Dashes


STYLES = [Style(colour, dashes) for dashes in DASHES for colour in COLOURS]


def draw_runs(runs: Sequence[RunRecord], groups: Sequence[SeedGroup] = ()) -> bytes:
    """Plot training loss, error and learning rate of all runs; return a PNG that is 1600 pixels wide.

    The error is the validation error, or the training error for a run without validation images. A dot marks the epoch
    whose weights are chosen. A group has one line, the mean of its runs in each epoch, in a band of one standard
    deviation to both sides. A run without a finished epoch appears in the legend only. The legend also shows the errors
    of the chosen weights, and which runs smooth the labels of their training loss.

    Args:
        runs: One or more.
        groups: Groups of some of these runs.

    Raises:
        UserError: If there are more lines than distinct styles.
    """
    drawn = _with_groups(runs, groups)
    if len(drawn) > MOST_RUNS:
        raise UserError(f"--plot cannot tell {len(drawn)} runs apart; name at most {MOST_RUNS}")
    labels = [_label(run) for run in drawn]
    columns = 2 if max(map(len, labels)) <= LONGEST_OF_TWO else 1
    figure = Figure(figsize=(10, 5 + 0.2 * -(-len(drawn) // columns)), dpi=160, layout="constrained")
    last_epoch = max([1, *(len(run.rows) for run in runs)])
    loss_panel, rate_panel, error_panel = make_panels(figure, last_epoch=last_epoch)
    for run, style in zip(drawn, STYLES, strict=False):
        if isinstance(run, SeedGroup):
            _draw_group(run, style, loss_panel, rate_panel, error_panel)
        else:
            _draw_rows(run.rows, style, loss_panel, rate_panel, error_panel)
    scale_rates(rate_panel, [{row.learning_rate for row in run.rows} for run in runs])
    _limit(loss_panel)
    _limit(error_panel)
    loss_panel.set_ylabel("training loss")
    error_panel.set_ylabel(f"{_error_name(runs)} error (%)")
    _add_legend(figure, labels, columns=columns)
    add_title(figure, _title(runs))
    return png(figure)


def _with_groups(runs: Sequence[RunRecord], groups: Sequence[SeedGroup]) -> list[RunRecord | SeedGroup]:
    """The runs in their order, each group in the place of its first run, and runs that are not counted left out."""
    group_of = {run.path: group for group in groups for run in (*group.runs, *group.repeated)}
    drawn: list[RunRecord | SeedGroup] = []
    for run in runs:
        line = group_of.get(run.path, run)
        if line not in drawn:
            drawn.append(line)
    return drawn


def _title(runs: Sequence[RunRecord]) -> str:
    """The number of runs, and their data set if it is the same one."""
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    names = {plain(run.flags.get("dataset", "")) for run in runs}
    return f"{number} on {names.pop()}" if len(names) == 1 and "" not in names else number


def _draw_rows(rows: Sequence[Row], style: Style, loss_panel: Axes, rate_panel: Axes, error_panel: Axes) -> None:
    best = best_row(rows)
    if best is None:
        return
    draw_rates(rate_panel, rows, color=style.colour, linestyle=style.dashes, linewidth=LINE_WIDTH)
    for panel, values in ((loss_panel, _losses(rows)), (error_panel, _percent_errors(rows))):
        _draw_line(panel, values, style)
        value = values[best.epoch - 1]
        panel.plot(
            best.epoch, value, color=style.colour, linestyle="none", marker="o", markersize=6, clip_on=False, zorder=3
        )


def _draw_group(group: SeedGroup, style: Style, loss_panel: Axes, rate_panel: Axes, error_panel: Axes) -> None:
    histories = [run.rows for run in group.runs]
    draw_rates(rate_panel, histories[0], color=style.colour, linestyle=style.dashes, linewidth=LINE_WIDTH)
    for panel, values_of in ((loss_panel, _losses), (error_panel, _percent_errors)):
        spreads = [Spread.of(values) for values in zip(*map(values_of, histories), strict=True)]
        means = [spread.mean for spread in spreads]
        deviations = [spread.deviation or 0.0 for spread in spreads]
        _draw_line(panel, means, style)
        low, high = np.subtract(means, deviations), np.add(means, deviations)
        epochs = range(1, len(means) + 1)
        panel.fill_between(epochs, low, high, color=style.colour, alpha=BAND_OPACITY, linewidth=0)
        panel.plot(epochs, high, linestyle="none")  # invisible: `_limit` sees how high the band is


def _draw_line(panel: Axes, values: Sequence[float], style: Style) -> None:
    panel.plot(
        range(1, len(values) + 1),
        values,
        color=style.colour,
        linestyle=style.dashes,
        linewidth=LINE_WIDTH,
        marker="o" if len(values) == 1 else None,  # a line through a single point is invisible
        markersize=4,
    )


def _losses(rows: Sequence[Row]) -> list[float]:
    return [row.train_loss for row in rows]


def _percent_errors(rows: Sequence[Row]) -> list[float]:
    """Validation errors in percent, of averaged weights where these are better, or training errors without images."""
    return [(row.train_error if row.kept_error is None else row.kept_error) * 100 for row in rows]


def _limit(panel: Axes) -> None:
    lines = [np.asarray(line.get_ydata()).tolist() for line in panel.get_lines()]
    panel.set_ylim(0, top_of(lines))


def _error_name(runs: Sequence[RunRecord]) -> str:
    """The images whose errors are plotted: validation, training, or both for different runs."""
    names = {"training" if run.rows[-1].valid_error is None else "validation" for run in runs if run.rows}
    return " or ".join(sorted(names, reverse=True)) or "validation"


def _add_legend(figure: Figure, labels: Sequence[str], *, columns: int) -> None:
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.dashes, linewidth=LINE_WIDTH)
        for style, _ in zip(STYLES, labels, strict=False)
    ]
    # Numbers first: matplotlib would leave out a label that begins with "_", and read "$" as mathematics.
    numbers = [str(i) for i in range(len(labels))]
    legend = figure.legend(handles, numbers, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)


def _label(run: RunRecord | SeedGroup) -> str:
    if isinstance(run, SeedGroup):
        parts = [f"{run.name}: mean of {len(run.runs)} seeds, band of ± one standard deviation"]
        parts += [f"test {percent(run.test_error)} %", _note_on_labels(run.runs[0])]
        return ", ".join(filter(None, parts))
    best = best_row(run.rows)
    if best is None:
        return f"{plain(run.path)}: no epoch done"
    errors = {"validation": best.kept_error, "test": run.test_error}
    parts = [f"{plain(run.path)}: {'epoch' if best.valid_error is None else 'best epoch'} {best.epoch}"]
    parts += [f"{name} {error:.2%}" for name, error in errors.items() if error is not None]
    parts.append(_note_on_labels(run))
    return ", ".join(filter(None, parts))


def _note_on_labels(run: RunRecord) -> str:
    mixed = bool(run.flags.get("mixup") or run.flags.get("cutmix"))
    return note_on_labels(smoothed=bool(run.flags.get("label_smoothing")), mixed=mixed)
