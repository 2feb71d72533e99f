"""The picture of a run: loss and error of each epoch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.history import Row, best_row

TRAIN_COLOUR, VALID_COLOUR, NOTE_COLOUR = "#4c78a8", "#e4572e", "#666666"


def draw_curves(rows: Sequence[Row], file: BinaryIO, *, title: str) -> None:
    """Draw training and validation curves side by side as a PNG of 1600 x 640 pixels.

    Args:
        rows: One an epoch, at least one.
        file: Open for writing.
        title: A line above both panels.
    """
    figure = Figure(figsize=(10, 4), dpi=160, layout="constrained")
    loss_panel, error_panel = figure.subplots(1, 2)
    _draw_panel(loss_panel, rows, "loss", scale=1)
    _draw_panel(error_panel, rows, "error", scale=100)
    loss_panel.set(title="Loss", ylabel="cross entropy")
    error_panel.set(title="Error", ylabel="error (%)")
    _mark_chosen(error_panel, rows)
    error_panel.legend(edgecolor="none", framealpha=0.9)
    figure.suptitle(title, fontsize=10, color=NOTE_COLOUR)
    figure.savefig(file, format="png", metadata={"Software": None})


def _draw_panel(panel: Axes, rows: Sequence[Row], quantity: str, *, scale: float) -> None:
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) == 1 else None  # a line through one point is invisible
    for part, colour, name in (("train", TRAIN_COLOUR, "training"), ("valid", VALID_COLOUR, "validation")):
        values = [getattr(row, f"{part}_{quantity}") for row in rows]
        if values[-1] is not None:
            scaled = [value * scale for value in values]
            panel.plot(epochs, scaled, color=colour, label=name, linewidth=1.6, marker=marker, markersize=4)
    for before, after in pairwise(rows):
        if before.learning_rate != after.learning_rate:
            panel.axvline(after.epoch - 0.5, color=NOTE_COLOUR, linewidth=0.8, linestyle=":")
    panel.set_xlabel("epoch  (dotted: learning rate changes)")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _mark_chosen(panel: Axes, rows: Sequence[Row]) -> None:
    chosen = best_row(rows)
    if chosen.valid_error is not None:
        label = f"chosen: epoch {chosen.epoch}, {chosen.valid_error:.2%}"
        point = {"color": VALID_COLOUR, "markersize": 6, "zorder": 3, "clip_on": False}  # whole where the error is 0
        panel.plot(chosen.epoch, chosen.valid_error * 100, "o", label=label, **point)
    if rows[-1].test_error is not None:
        label = f"test error of the chosen: {rows[-1].test_error:.2%}"
        panel.axhline(rows[-1].test_error * 100, color=NOTE_COLOUR, linewidth=1, linestyle="--", label=label)
