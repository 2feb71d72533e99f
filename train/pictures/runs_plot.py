"""Several runs in one picture."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train.errors import UserError
from train.folder.history import best_row
from train.folder.logbook import Logbook
from train.pictures.panels import SMOOTHED, draw_rates, make_panels, scale_rates, top_of
from train.pictures.png import png
from train.results.tables import plain

# Apart for most eyes, also where red and green look alike.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333", "#7a4fbf")
DASHES = ("-", "--", ":")
MOST_RUNS = len(COLOURS) * len(DASHES)


def draw_runs(runs: Sequence[Logbook]) -> bytes:
    """Draw training loss, error and learning rate of all runs; return a PNG that is 1600 pixels wide.

    The error is that of the validation images, or of the training images for a run that has none. A dot is at the
    epoch whose weights are chosen. A run without an epoch has a place in the legend only. The legend also says which
    runs smooth the labels of their training loss.

    Raises:
        UserError: If there are more runs than can be told apart.
    """
    if len(runs) > MOST_RUNS:
        raise UserError(f"--plot cannot tell {len(runs)} runs apart; name at most {MOST_RUNS}")
    figure = Figure(figsize=(10, 5 + 0.2 * -(-len(runs) // 2)), dpi=160, layout="constrained")
    last_epoch = max([1, *(len(run.rows) for run in runs)])
    loss_panel, rate_panel, error_panel = make_panels(figure, last_epoch=last_epoch)
    for run, style in zip(runs, _styles(), strict=False):
        if run.rows:
            _draw_run(run, style, loss_panel, rate_panel, error_panel)
    scale_rates(rate_panel, {row.learning_rate for run in runs for row in run.rows})
    _limit(loss_panel)
    _limit(error_panel)
    loss_panel.set_ylabel("training loss")
    error_panel.set_ylabel(f"{_error_name(runs)} error (%)")
    _add_legend(figure, runs)
    return png(figure)


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


def _add_legend(figure: Figure, runs: Sequence[Logbook]) -> None:
    handles = [Line2D([], [], **style) for style, _ in zip(_styles(), runs, strict=False)]
    # Numbers first: matplotlib would leave out a name that begins with "_", and read "$" as mathematics.
    legend = figure.legend(
        handles, [str(i) for i in range(len(runs))], loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set(text=_label(run), parse_math=False)


def _label(run: Logbook) -> str:
    best = best_row(run.rows)
    if best is None:
        return f"{plain(run.path)}: no epoch done"
    smoothed = f", {SMOOTHED}" if run.flags.get("label_smoothing") else ""
    if best.valid_error is None:
        return f"{plain(run.path)}: epoch {best.epoch}{smoothed}"
    return f"{plain(run.path)}: best epoch {best.epoch}, {best.valid_error:.2%}{smoothed}"
