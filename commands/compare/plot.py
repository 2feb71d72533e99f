"""A plot of several runs: training loss, error and learning rate of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from commands.plots import SMOOTHED, add_title, draw_rates, make_panels, png, scale_rates, top_of
from commands.run_record import RunRecord
from commands.tables import plain
from train.errors import UserError
from train.run.history import Row, best_row

# Most people can tell these apart, including those who confuse red and green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333", "#7a4fbf")
Dashes = Literal["-", "--", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", ":")
MOST_RUNS = len(COLOURS) * len(DASHES)
LINE_WIDTH = 1.3
LONGEST_OF_TWO = 62  # characters of a legend label that leave room for a second column of labels


@dataclass(frozen=True)
class Style:
    """Colour and dashes of the lines of a run."""

    colour: str
    dashes: Dashes


STYLES = [Style(colour, dashes) for dashes in DASHES for colour in COLOURS]


def draw_runs(runs: Sequence[RunRecord]) -> bytes:
    """Plot training loss, error and learning rate of all runs; return a PNG that is 1600 pixels wide.

    The error is the validation error, or the training error for a run without validation images. A dot marks the epoch
    whose weights are chosen. A run without a finished epoch appears in the legend only. The legend also shows the
    errors of the chosen weights, and which runs smooth the labels of their training loss.

    Raises:
        UserError: If there are more runs than distinct styles.
    """
    if len(runs) > MOST_RUNS:
        raise UserError(f"--plot cannot tell {len(runs)} runs apart; name at most {MOST_RUNS}")
    labels = [_label(run) for run in runs]
    columns = 2 if max(map(len, labels)) <= LONGEST_OF_TWO else 1
    figure = Figure(figsize=(10, 5 + 0.2 * -(-len(runs) // columns)), dpi=160, layout="constrained")
    last_epoch = max([1, *(len(run.rows) for run in runs)])
    loss_panel, rate_panel, error_panel = make_panels(figure, last_epoch=last_epoch)
    for run, style in zip(runs, STYLES, strict=False):
        _draw_rows(run.rows, style, loss_panel, rate_panel, error_panel)
    scale_rates(rate_panel, [{row.learning_rate for row in run.rows} for run in runs])
    _limit(loss_panel)
    _limit(error_panel)
    loss_panel.set_ylabel("training loss")
    error_panel.set_ylabel(f"{_error_name(runs)} error (%)")
    _add_legend(figure, labels, columns=columns)
    add_title(figure, _title(runs))
    return png(figure)


def _title(runs: Sequence[RunRecord]) -> str:
    """The number of runs, and their data set if it is the same one."""
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    names = {plain(run.flags.get("dataset", "")) for run in runs}
    return f"{number} on {names.pop()}" if len(names) == 1 and "" not in names else number


def _draw_rows(rows: Sequence[Row], style: Style, loss_panel: Axes, rate_panel: Axes, error_panel: Axes) -> None:
    best = best_row(rows)
    if best is None:
        return
    epochs = [row.epoch for row in rows]
    draw_rates(rate_panel, rows, color=style.colour, linestyle=style.dashes, linewidth=LINE_WIDTH)
    for panel, values in ((loss_panel, [row.train_loss for row in rows]), (error_panel, _percent_errors(rows))):
        panel.plot(
            epochs,
            values,
            color=style.colour,
            linestyle=style.dashes,
            linewidth=LINE_WIDTH,
            marker="o" if len(rows) == 1 else None,  # a line through a single point is invisible
            markersize=4,
        )
        value = values[best.epoch - 1]
        panel.plot(
            best.epoch, value, color=style.colour, linestyle="none", marker="o", markersize=6, clip_on=False, zorder=3
        )


def _percent_errors(rows: Sequence[Row]) -> list[float]:
    """Validation errors in percent, of averaged weights where these are better, or training errors without images."""
    return [(row.train_error if row.kept_error is None else row.kept_error) * 100 for row in rows]


def _limit(panel: Axes) -> None:
    panel.set_ylim(0, top_of([np.asarray(line.get_ydata()).tolist() for line in panel.get_lines()]))


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


def _label(run: RunRecord) -> str:
    best = best_row(run.rows)
    if best is None:
        return f"{plain(run.path)}: no epoch done"
    errors = {"validation": best.kept_error, "test": run.test_error}
    parts = [f"{plain(run.path)}: {'epoch' if best.valid_error is None else 'best epoch'} {best.epoch}"]
    parts += [f"{name} {error:.2%}" for name, error in errors.items() if error is not None]
    parts += [SMOOTHED] if run.flags.get("label_smoothing") else []
    return ", ".join(parts)
