"""The plot of an evaluation: confusion matrix and reliability diagram side by side."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from commands.evaluate.confusion_plot import draw_confusion
from commands.evaluate.reliability_plot import draw_reliability
from commands.evaluate.report import Report
from commands.plots import add_title, png


def draw_report(report: Report, *, title: Sequence[str]) -> bytes:
    """Plot a report; return a PNG of 2080 x 1152 pixels.

    Args:
        report: The report.
        title: Lines above the plot.
    """
    figure = Figure(figsize=(13, 7.2), dpi=160, layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(8, 5))
    left, right = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    draw_confusion(left, report.confusion, report.classes)
    draw_reliability(right, report)
    add_title(figure, *title)
    return png(figure)
