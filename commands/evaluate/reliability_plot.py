"""A reliability diagram: how often a network is right, over how sure it is."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import FuncFormatter, NullLocator

from commands.evaluate.reliability import BINS, Reliability
from commands.evaluate.report import Report
from commands.plots import NOTE_COLOUR

COLOUR, CALIBRATED_COLOUR = "#1f77b4", "#d62728"
SMALLEST, LARGEST = 6, 90  # area of a point, without images and for all of them, in square points


def draw_reliability(figure: FigureBase, report: Report) -> None:
    """Plot accuracy over confidence, bin by bin, and below it the fraction of the images in each bin.

    Where probabilities can be believed, the points lie on the dashed line. Points below it are of a network that is
    too sure, and small points are of few images, whose accuracy says little. Where the report has a temperature, there
    are points without it and with it.

    Args:
        figure: Where to plot it.
        report: The report.
    """
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color=NOTE_COLOUR, linestyle="--", linewidth=1)
    _draw(upper, lower, report.reliability, name="of the network", colour=COLOUR)
    if report.calibrated:
        name = f"at temperature {report.calibrated.temperature:.4g}"
        _draw(upper, lower, report.calibrated, name=name, colour=CALIBRATED_COLOUR)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy in the bin")
    upper.legend(
        loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, title="probabilities", alignment="left"
    )
    lower.set(xlabel="probability of the predicted class", ylabel="images", yscale="log")
    lower.set_ylim(top=1)
    lower.yaxis.set_major_formatter(FuncFormatter(lambda fraction, position: f"{100 * fraction:g}%"))
    lower.yaxis.set_minor_locator(NullLocator())
    for panel in (upper, lower):
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def _draw(upper: Axes, lower: Axes, reliability: Reliability, *, name: str, colour: str) -> None:
    total = sum(one.images for one in reliability.bins)
    fractions = [one.images / total for one in reliability.bins]
    points = [
        (one.confidence, one.accuracy, SMALLEST + LARGEST * math.sqrt(fraction))
        for one, fraction in zip(reliability.bins, fractions, strict=True)
        if one.confidence is not None
    ]
    x, y, areas = zip(*points, strict=True)
    label = f"{name}: calibration error {reliability.calibration_error:.2%}"
    upper.plot(x, y, color=colour, linewidth=1, alpha=0.4)
    # Without clipping, so that points at 0 and 1 are complete.
    upper.scatter(x, y, areas, color=colour, label=label, clip_on=False, zorder=3)
    edges = [i / BINS for i in range(BINS + 1)]
    lower.stairs(fractions, edges, color=colour, linewidth=1.4)
