"""A report on a test set: overall errors, calibration, the accuracy of each class, and which classes are confused."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from commands.evaluate.confusion_counts import ConfusionCounts
from commands.evaluate.reliability import BINS, Reliability
from commands.tables import aligned, plain, to_csv

FEWEST_FOR_TOP5 = 10  # classes; among fewer, five guesses say little
LARGEST_MATRIX = 12  # classes for which a terminal is wide enough
CONFUSIONS = 10  # listed instead of the matrix if there are more classes
LONGEST_NAME = 12  # characters of a class name above a column of the matrix


@dataclass(frozen=True)
class Report:
    """Measurements on a test set of one image or more, with C classes.

    Attributes:
        error: Fraction of images that are misclassified.
        top5_error: Fraction of images whose class is not among the five highest logits; None if there are few classes.
        confusion: int64 (C, C) on the CPU, number of images by true class (row) and predicted class (column).
        classes: Names of the classes.
        reliability: Of the probabilities that the network gives.
        calibrated: Of those at a temperature; None if there is no temperature.
    """

    error: float
    top5_error: float | None
    confusion: Tensor
    classes: tuple[str, ...]
    reliability: Reliability
    calibrated: Reliability | None = None

    @classmethod
    def from_counts(
        cls,
        counts: ConfusionCounts,
        classes: tuple[str, ...],
        reliability: Reliability,
        calibrated: Reliability | None = None,
    ) -> "Report":
        """Wait for the device, and average over the images that were counted."""
        confusion = counts.matrix.cpu()
        images = confusion.sum().item()
        top5_error = counts.top5_misses.item() / images if len(classes) >= FEWEST_FOR_TOP5 else None
        wrong = images - confusion.trace().item()
        return cls(wrong / images, top5_error, confusion, classes, reliability, calibrated)

    @cached_property
    def rows(self) -> list["ClassRow"]:
        """Measurements on each class."""
        return [ClassRow(label, counts) for label, counts in enumerate(self.confusion.tolist())]

    @property
    def images(self) -> int:
        """Number of images in the test set."""
        return sum(row.images for row in self.rows)

    def summary(self) -> str:
        """Error, loss and top-5 error on one line."""
        wrong = self.images - sum(row.correct for row in self.rows)
        text = f"test error {self.error:.2%} ({wrong:,} of {self.images:,} images), loss {self.reliability.loss:.4f}"
        return text + ("" if self.top5_error is None else f", top-5 error {self.top5_error:.2%}")

    def as_text(self) -> str:
        """The calibration, a line for each class, and the confusion matrix, or the largest confusions if it is wide."""
        header = ["class", "images", "accuracy", "most often misclassified as"]
        table = aligned([header, *map(self._class_cells, self.rows)])
        few = len(self.classes) <= LARGEST_MATRIX
        return "\n\n".join([self._calibration(), table, self._matrix() if few else self._largest_confusions()])

    def as_csv(self) -> bytes:
        """A line for each class: images, accuracy as a fraction, and how many images were predicted as each class."""
        return to_csv([self._record(row) for row in self.rows])

    def _calibration(self) -> str:
        header = ["probabilities", f"calibration error ({BINS} bins)", "negative log likelihood", "average confidence"]
        rows = [("of the network", self.reliability)]
        if self.calibrated:
            rows.append((f"at temperature {self.calibrated.temperature:.4g}", self.calibrated))
        cells = [
            [name, f"{one.calibration_error:.2%}", f"{one.loss:.4f}", f"{one.confidence:.2%}"] for name, one in rows
        ]
        return aligned([header, *cells])

    def _class_cells(self, row: "ClassRow") -> list[str]:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.2%}"
        wrong = row.most_frequent_mistake
        misclassified_as = "-" if wrong is None else f"{plain(self.classes[wrong])} ({row.counts[wrong]:,})"
        return [plain(self.classes[row.label]), f"{row.images:,}", accuracy, misclassified_as]

    def _matrix(self) -> str:
        names = [plain(name, longest=LONGEST_NAME) for name in self.classes]
        lines = [
            [name, *(f"{n:,}" if n else "." for n in row.counts)] for name, row in zip(names, self.rows, strict=True)
        ]
        return f"confusion matrix, true class (line) and predicted class (column):\n\n{aligned([['', *names], *lines])}"

    def _largest_confusions(self) -> str:
        pairs = [(row.counts[wrong], row, wrong) for row in self.rows for wrong in row.mistakes()]
        largest = sorted(pairs, key=lambda pair: -pair[0])[:CONFUSIONS]
        if not largest:
            return "no image is misclassified"
        lines = [
            [plain(self.classes[row.label]), plain(self.classes[wrong]), f"{n:,}", f"{n / row.images:.2%}"]
            for n, row, wrong in largest
        ]
        header = ["true class", "predicted class", "images", "of the true class"]
        return f"largest confusions:\n\n{aligned([header, *lines])}"

    def _record(self, row: "ClassRow") -> dict[str, object]:
        record = {"class": self.classes[row.label], "images": row.images, "accuracy": row.accuracy}
        return record | {f"predicted {name}": n for name, n in zip(self.classes, row.counts, strict=True)}


@dataclass(frozen=True)
class ClassRow:
    """Measurements on one class.

    Attributes:
        label: The class as a number.
        counts: Number of its images by predicted class.
    """

    label: int
    counts: list[int]

    @property
    def images(self) -> int:
        """Number of images of this class."""
        return sum(self.counts)

    @property
    def correct(self) -> int:
        """Number of images that are classified correctly."""
        return self.counts[self.label]

    @property
    def accuracy(self) -> float | None:
        """Fraction of images that are classified correctly; None for a class without images."""
        return self.correct / self.images if self.images else None

    @property
    def most_frequent_mistake(self) -> int | None:
        """The class predicted most often by mistake, the first one of equals; None if there is no mistake."""
        return max(self.mistakes(), key=lambda label: self.counts[label], default=None)

    def mistakes(self) -> list[int]:
        """All classes predicted by mistake for images of this class."""
        return [label for label, n in enumerate(self.counts) if n and label != self.label]
