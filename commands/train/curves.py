"""curves.png in the folder of a run. matplotlib, which takes a second to import, waits for the first epoch."""

from collections.abc import Sequence

from train.run.config import CURVES
from train.run.history import Row
from train.run.open_folder import OpenFolder


class Curves:
    """curves.png in the folder of a run.

    Args:
        directory: The folder of the run.
        title: A line above all panels.
        label_smoothing: Fraction of each label that was spread over all classes in the training loss.
        mixes: Whether training images were mixed with each other.
    """

    def __init__(self, directory: OpenFolder, *, title: str, label_smoothing: float = 0.0, mixes: bool = False):
        self.directory = directory
        self.title = title
        self.label_smoothing = label_smoothing
        self.mixes = mixes

    def write(self, rows: Sequence[Row]) -> None:
        """Draw the rows of the run.

        Raises:
            RunError: If the system refuses, or the folder of the run is no longer ours.
        """
        from commands.train.plot import draw_curves

        self.directory.write(
            CURVES,
            lambda file: draw_curves(
                rows, file, title=self.title, label_smoothing=self.label_smoothing, mixes=self.mixes
            ),
        )
