"""Several runs in one picture."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from commands.plots import SMOOTHED, add_title, draw_rates, make_panels, scale_rates, top_of
from commands.png import png
from commands.run_history import Logbook
from commands.tables import plain
from train.errors import UserError
from train.run.history import best_row

# Apart for most eyes, also where red and green look alike.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333", "#7a4fbf")
DASHES = ("-", "--", ":")
HALF_A_LINE = 62  # characters of a label that leave room for another one beside it
MOST_RUNS = len(COLOURS) * len(DASHES)


def draw_runs(runs: Sequence[Logbook]) -> bytes:
    """Draw training loss, error and learning rate of all runs; return a PNG that is 1600 pixels wide.

    The error is that of the validation images, or of the training images for a run that has none. A dot is at the
    epoch whose weights are chosen. A run without an epoch has a place in the legend only. The legend also has the
    errors of the chosen weights, and says which runs smooth the labels of their training loss.

    Raises:
        UserError: If there are more runs than can be told apart.
    """
    if len(runs) > MOST_RUNS:
        raise UserError(f"--plot cannot tell {len(runs)} runs apart; name at most {MOST_RUNS}")
    labels = [_label(run) for run in runs]
    columns = 2 if max(map(len, labels)) <= HALF_A_LINE else 1
    figure = Figure(figsize=(10, 5 + 0.2 * -(-len(runs) // columns)), dpi=160, layout="constrained")
    last_epoch = max([1, *(len(run.rows) for run in runs)])
    loss_panel, rate_panel, error_panel = make_panels(figure, last_epoch=last_epoch)
    for run, style in zip(runs, _styles(), strict=False):
        if run.rows:
            _draw_run(run, style, loss_panel, rate_panel, error_panel)
    scale_rates(rate_panel, [{row.learning_rate for row in run.rows} for run in runs])
    _limit(loss_panel)
    _limit(error_panel)
    loss_panel.set_ylabel("training loss")
    error_panel.set_ylabel(f"{_error_name(runs)} error (%)")
    _add_legend(figure, labels, columns=columns)
    add_title(figure, _title(runs))
    return png(figure)


def _title(runs: Sequence[Logbook]) -> str:
    """How many runs there are, and the data set if they have one in common."""
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    names = {plain(run.flags.get("dataset", "")) for run in runs}
    return f"{number} on {names.pop()}" if len(names) == 1 and "" not in names else number


def _styles() -> list[dict[str, object]]:
    return [{"color": colour, "linestyle": dash, "linewidth": 1.3} for dash in DASHES for colour in COLOURS]


def _draw_run(run: Logbook, style: dict[str, object], loss_panel: Axes, rate_panel: Axes, error_panel: Axes) -> None:
    epochs = [row.epoch for row in run.rows]
    best = best_row(run.rows)
    marker = {"marker": "o", "markersize": 4} if len(epochs) == 1 else {}  # a line through one point is invisible
    loss_panel.plot(epochs, [row.train_loss for row in run.rows], **style, **marker)
    draw_rates(rate_panel, run.rows, **style)
    part = "train_error" if best.valid_error is None else "valid_error"
    errors = [getattr(row, part) * 100 for row in run.rows]
    error_panel.plot(epochs, errors, **style, **marker)
    dot = {"marker": "o", "markersize": 6, "clip_on": False, "zorder": 3, "linestyle": "none"}
    for panel, height in ((loss_panel, best.train_loss), (error_panel, getattr(best, part) * 100)):
        panel.plot(best.epoch, height, color=style["color"], **dot)


def _limit(panel: Axes) -> None:
    panel.set_ylim(0, top_of([list(line.get_ydata()) for line in panel.get_lines()]))


def _error_name(runs: Sequence[Logbook]) -> str:
    """Whose errors are drawn."""
    names = {"training" if run.rows[-1].valid_error is None else "validation" for run in runs if run.rows}
    return " or ".join(sorted(names, reverse=True)) or "validation"


def _add_legend(figure: Figure, labels: Sequence[str], *, columns: int) -> None:
    handles = [Line2D([], [], **style) for style, _ in zip(_styles(), labels, strict=False)]
    # Numbers first: matplotlib would leave out a name that begins with "_", and read "$" as mathematics.
    numbers = [str(i) for i in range(len(labels))]
    legend = figure.legend(handles, numbers, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)


def _label(run: Logbook) -> str:
    best = best_row(run.rows)
    if best is None:
        return f"{plain(run.path)}: no epoch done"
    errors = {"validation": best.valid_error, "test": run.test_error}
    parts = [f"{plain(run.path)}: {'epoch' if best.valid_error is None else 'best epoch'} {best.epoch}"]
    parts += [f"{name} {error:.2%}" for name, error in errors.items() if error is not None]
    parts += [SMOOTHED] if run.flags.get("label_smoothing") else []
    return ", ".join(parts)
