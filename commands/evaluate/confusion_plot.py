"""A plot of a confusion matrix. C is the number of classes."""

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import FigureBase
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from commands.plots import NOTE_COLOUR
from commands.tables import plain

MOST_COUNTS = 20  # classes for which the cells are wide enough to show their counts
MOST_LABELS = 25  # class names that fit along an axis
LONGEST_NAME = 16  # characters of a class name
LONGEST_ROW = 50  # characters of class names that fit side by side below the matrix
EMPTY_COLOUR = "#e8e8e8"


def draw_confusion(figure: FigureBase, confusion: Tensor, classes: tuple[str, ...]) -> None:
    """Plot a confusion matrix.

    The colour of a cell shows its fraction of the images of the true class, on a scale on which one in a hundred is
    visible. The row of a class without images is grey.

    Args:
        figure: Where to plot it.
        confusion: int64 (C, C) on the CPU, number of images by true class (row) and predicted class (column).
        classes: Names of the classes.
    """
    panel = figure.subplots()
    fractions = confusion / confusion.sum(1, keepdim=True)  # NaN for a class without images
    colours = colormaps["Blues"].with_extremes(bad=EMPTY_COLOUR)
    # A square root, because on a linear scale a confusion of a few per cent would look as white as none.
    image = panel.imshow(fractions.numpy(), cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _label_axes(panel, classes)
    if len(classes) <= MOST_COUNTS:
        _write_counts(panel, confusion, fractions)
    scale = figure.colorbar(image, ax=panel, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    scale.ax.yaxis.set_major_formatter(PercentFormatter(1))
    scale.ax.minorticks_off()
    scale.outline.set_visible(False)
    scale.set_label("fraction of the images of the true class", color=NOTE_COLOUR)


def _label_axes(panel: Axes, classes: tuple[str, ...]) -> None:
    """Write the names of all classes, or of classes at equal distances if not all of them fit."""
    places = range(0, len(classes), -(-len(classes) // MOST_LABELS))
    names = [plain(classes[i], longest=LONGEST_NAME) for i in places]
    slanted = max(map(len, names)) * len(names) > LONGEST_ROW
    size = 9 if len(names) <= 12 else 7.5
    panel.set_xticks(places, names, rotation=60 if slanted else 0, ha="right" if slanted else "center", fontsize=size)
    panel.set_yticks(places, names, fontsize=size)
    for text in (*panel.get_xticklabels(), *panel.get_yticklabels()):
        text.set(parse_math=False, rotation_mode="anchor")
    panel.set(xlabel="predicted class", ylabel="true class")
    panel.tick_params(length=0 if len(places) == len(classes) else 3)
    panel.spines[:].set_visible(False)


def _write_counts(panel: Axes, confusion: Tensor, fractions: Tensor) -> None:
    """Write the number of images into each cell that has any."""
    size = 16 if len(confusion) <= 4 else 10 if len(confusion) <= 12 else 7
    for i, j in torch.nonzero(confusion).tolist():
        colour = "white" if fractions[i, j] > 0.35 else "black"
        panel.text(j, i, f"{confusion[i, j]:,}", ha="center", va="center", color=colour, fontsize=size)
