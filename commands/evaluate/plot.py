"""The picture of a confusion matrix."""

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from commands.plots import NOTE_COLOUR, add_title
from commands.png import png
from commands.tables import plain

CONFUSION = "confusion.png"
MOST_NUMBERS = 20  # classes whose cells are wide enough for a number
MOST_LABELS = 25  # names that fit along an axis
LONGEST_NAME = 16  # characters of a name
EMPTY_COLOUR = "#e8e8e8"


def draw_confusion(confusion: Tensor, classes: tuple[str, ...], *, title: Sequence[str]) -> bytes:
    """Draw how the images of each class were answered; return a PNG of 1280 x 1152 pixels.

    A cell's colour is its share of the images of its class, on a scale that shows one in a hundred. The line of a
    class without images is grey.

    Args:
        confusion: int64 (classes, classes) on the CPU, counts by class (row) and answer (column).
        classes: Their names.
        title: Lines above the plot.
    """
    figure = Figure(figsize=(8, 7.2), dpi=160, layout="constrained")
    panel = figure.subplots()
    share = confusion / confusion.sum(1, keepdim=True)  # NaN in a class without images
    # A square root: on an even scale a confusion of some per cent would be as white as none.
    colours = colormaps["Blues"].with_extremes(bad=EMPTY_COLOUR)
    image = panel.imshow(share.numpy(), cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _label_axes(panel, classes)
    if len(classes) <= MOST_NUMBERS:
        _write_counts(panel, confusion, share)
    scale = figure.colorbar(image, ax=panel, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    scale.ax.yaxis.set_major_formatter(PercentFormatter(1))
    scale.ax.minorticks_off()
    scale.outline.set_visible(False)
    scale.set_label("of the images of the class", color=NOTE_COLOUR)
    add_title(figure, *title)
    return png(figure)


def _label_axes(panel: Axes, classes: tuple[str, ...]) -> None:
    """Name the classes, or every so many of them where all would not fit."""
    places = range(0, len(classes), -(-len(classes) // MOST_LABELS))
    names = [plain(classes[i], longest=LONGEST_NAME) for i in places]
    slanted = max(map(len, names)) * len(names) > 50  # characters side by side, at this size of letters
    size = 9 if len(names) <= 12 else 7.5
    panel.set_xticks(places, names, rotation=60 if slanted else 0, ha="right" if slanted else "center", fontsize=size)
    panel.set_yticks(places, names, fontsize=size)
    for text in (*panel.get_xticklabels(), *panel.get_yticklabels()):
        text.set(parse_math=False, rotation_mode="anchor")
    panel.set(xlabel="the network's answer", ylabel="class")
    panel.tick_params(length=0 if len(places) == len(classes) else 3)
    panel.spines[:].set_visible(False)


def _write_counts(panel: Axes, confusion: Tensor, share: Tensor) -> None:
    """Write the number of images into each cell that has some."""
    size = 16 if len(confusion) <= 4 else 10 if len(confusion) <= 12 else 7
    for i, j in torch.nonzero(confusion).tolist():
        colour = "white" if share[i, j] > 0.35 else "black"
        panel.text(j, i, f"{confusion[i, j]:,}", ha="center", va="center", color=colour, fontsize=size)
