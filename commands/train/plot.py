"""Draw the plot of a run: loss, error and learning rate of each epoch."""

from collections.abc import Sequence
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commands.plots import NOTE_COLOUR, add_title, draw_rates, make_panels, note_on_labels, png, scale_rates, top_of
from train.run.history import Row, best_row, chooses_average

TRAIN_COLOUR, VALID_COLOUR, EMA_COLOUR, TEST_COLOUR = "#4c78a8", "#e4572e", "#8e5bb5", "#2a9d5c"


def draw_curves(
    rows: Sequence[Row], file: BinaryIO, *, title: str, label_smoothing: float = 0.0, mixes: bool = False
) -> None:
    """Draw loss, learning rate and error as a PNG of 1600 x 800 pixels.

    The axes of loss and error begin at 0 and are linear. Where a few early epochs are much higher than all others, the
    lines leave the panel at its top.

    Args:
        rows: The epochs, at least one.
        file: A file that is open for writing.
        title: A line above all panels.
        label_smoothing: Fraction of each label that was spread over all classes in the training loss. The validation
            loss is without it; if it is not 0, a legend says so.
        mixes: Whether training images were mixed with each other. Loss and error of training are those of mixtures.
    """
    figure = Figure(figsize=(10, 5), dpi=160, layout="constrained")
    loss_panel, rate_panel, error_panel = make_panels(figure, last_epoch=len(rows))
    for panel in figure.axes:
        _mark_epoch(panel, rows)
    of_loss, of_error = (note_on_labels(smoothed=smoothed, mixed=mixes) for smoothed in (label_smoothing > 0, False))
    _draw_lines(loss_panel, rows, "loss", scale=1, note=of_loss)
    _draw_lines(error_panel, rows, "error", scale=100, note=of_error)
    draw_rates(rate_panel, rows, color=NOTE_COLOUR, linewidth=1.4)
    scale_rates(rate_panel, [{row.learning_rate for row in rows}])
    _mark_chosen(error_panel, rows)
    _mark_test(error_panel, rows)
    loss_panel.set_ylabel("loss (cross entropy)")
    error_panel.set_ylabel("error (%)")
    for panel in (loss_panel, error_panel) if of_loss else (error_panel,):
        # Above the panel, where it covers no line.
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9, borderaxespad=0.2)
    add_title(figure, title)
    file.write(png(figure))


def _draw_lines(panel: Axes, rows: Sequence[Row], quantity: str, *, scale: float, note: str) -> None:
    """Draw a quantity of the training images, with a note on their labels, and of the validation images if any.

    Averaged weights have a line of their own.
    """
    training = f"training ({note})" if note else "training"
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) == 1 else None  # a line through one point is invisible
    drawn = []
    for part, colour, name in (
        ("train", TRAIN_COLOUR, training),
        ("valid", VALID_COLOUR, "validation"),
        ("ema_valid", EMA_COLOUR, "validation of EMA"),
    ):
        values = [getattr(row, f"{part}_{quantity}") for row in rows]
        if values[-1] is not None:
            scaled = [value * scale for value in values]
            panel.plot(epochs, scaled, color=colour, label=name, linewidth=1.6, marker=marker, markersize=4)
            drawn.append(scaled)
    visible = [getattr(best_row(rows), f"kept_{quantity}"), rows[-1].test_error if quantity == "error" else None]
    panel.set_ylim(0, top_of(drawn, visible=[value * scale for value in visible if value is not None]))


def _mark_epoch(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw a thin line through the chosen epoch if it was chosen by its validation error."""
    chosen = best_row(rows)
    if chosen is not None and chosen.valid_error is not None and len(rows) > 1:
        panel.axvline(chosen.epoch, color=VALID_COLOUR, linewidth=0.8, alpha=0.5, zorder=1)


def _mark_chosen(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw a point at the validation error of the chosen weights."""
    chosen = best_row(rows)
    if chosen is not None and chosen.kept_error is not None:
        averaged = chooses_average(chosen, has_average=False)
        label = f"chosen: {'EMA of ' if averaged else ''}epoch {chosen.epoch}, {chosen.kept_error:.2%}"
        # Without clipping, so that the point is complete where the error is 0.
        panel.plot(
            chosen.epoch,
            chosen.kept_error * 100,
            "o",
            label=label,
            color=EMA_COLOUR if averaged else VALID_COLOUR,
            markersize=6,
            zorder=3,
            clip_on=False,
        )


def _mark_test(panel: Axes, rows: Sequence[Row]) -> None:
    """Draw a dashed line at the test error if it is known."""
    test_error = rows[-1].test_error
    if test_error is not None:
        label = f"test error of the chosen: {test_error:.2%}"
        panel.axhline(test_error * 100, color=TEST_COLOUR, linewidth=1.2, linestyle="--", label=label)
