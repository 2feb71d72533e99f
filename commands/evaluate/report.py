"""How good a network is on a test set: as a whole, on each class, and which classes it takes for others."""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from commands.evaluate.confusion_counts import Tally
from commands.tables import aligned, plain, to_csv
from train.errors import RunError

FEWEST_FOR_TOP5 = 10  # classes: five guesses among fewer say little
LARGEST_MATRIX = 12  # classes, which a terminal is wide enough for
CONFUSIONS = 10  # listed where there are more classes
LONGEST_NAME = 12  # characters of a class's name, at the head of a column


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a test set.

    Attributes:
        loss: Average cross entropy, natural logarithm.
        error: Fraction of images whose class is not the network's answer.
        top5_error: Fraction of images whose class is not among the five highest logits; None for few classes.
        confusion: int64 (classes, classes) on the CPU: how many images of each class (row) got which answer (column).
        classes: Their names.
    """

    loss: float
    error: float
    top5_error: float | None
    confusion: Tensor
    classes: tuple[str, ...]

    @classmethod
    def of(cls, sums: Tally, classes: tuple[str, ...]) -> "Evaluation":
        """Wait for the device and form the averages of one image or more.

        Raises:
            RunError: If the loss is NaN or infinite.
        """
        confusion = sums.confusion.cpu()
        images = confusion.sum().item()
        loss = sums.loss.item() / images
        if not math.isfinite(loss):
            raise RunError("the test loss is NaN or infinite, so that the network's answers mean nothing")
        top5_error = sums.missed.item() / images if len(classes) >= FEWEST_FOR_TOP5 else None
        wrong = images - confusion.trace().item()
        return cls(loss, wrong / images, top5_error, confusion, classes)

    @cached_property
    def rows(self) -> list["ClassRow"]:
        """What was measured of each class."""
        return [ClassRow(i, counts) for i, counts in enumerate(self.confusion.tolist())]

    @property
    def images(self) -> int:
        """How many there were."""
        return sum(row.images for row in self.rows)

    def summary(self) -> str:
        """Error, loss and top-5 error on one line."""
        wrong = self.images - sum(row.correct for row in self.rows)
        text = f"test error {self.error:.2%} ({wrong:,} of {self.images:,} images), loss {self.loss:.4f}"
        return text + ("" if self.top5_error is None else f", top-5 error {self.top5_error:.2%}")

    def as_text(self) -> str:
        """A line for each class, and below them the matrix, or the largest confusions where it would be too wide."""
        table = aligned([["class", "images", "accuracy", "most often taken for"], *map(self._class_cells, self.rows)])
        few = len(self.classes) <= LARGEST_MATRIX
        return "\n\n".join([table, self._matrix() if few else self._largest_confusions()])

    def as_csv(self) -> bytes:
        """A line for each class: images, accuracy as a fraction, and how many of them got which answer."""
        return to_csv([self._record(row) for row in self.rows])

    def _class_cells(self, row: "ClassRow") -> list[str]:
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.2%}"
        other = row.taken_for
        taken_for = "-" if other is None else f"{plain(self.classes[other])} ({row.counts[other]:,})"
        return [plain(self.classes[row.index]), f"{row.images:,}", accuracy, taken_for]

    def _matrix(self) -> str:
        names = [plain(name, longest=LONGEST_NAME) for name in self.classes]
        lines = [
            [name, *(f"{n:,}" if n else "." for n in row.counts)] for name, row in zip(names, self.rows, strict=True)
        ]
        return f"each class (line) and the network's answers (column):\n\n{aligned([['', *names], *lines])}"

    def _largest_confusions(self) -> str:
        pairs = [(row.counts[j], row, j) for row in self.rows for j in row.confusions()]
        largest = sorted(pairs, key=lambda pair: -pair[0])[:CONFUSIONS]
        if not largest:
            return "no class is taken for another one"
        lines = [
            [plain(self.classes[row.index]), plain(self.classes[j]), f"{n:,}", f"{n / row.images:.2%}"]
            for n, row, j in largest
        ]
        return f"largest confusions:\n\n{aligned([['class', 'taken for', 'images', 'of the class'], *lines])}"

    def _record(self, row: "ClassRow") -> dict[str, object]:
        record: dict[str, object] = {"class": self.classes[row.index]}
        record |= {"images": row.images, "accuracy": row.accuracy}
        return record | {f"predicted {name}": n for name, n in zip(self.classes, row.counts, strict=True)}


@dataclass(frozen=True)
class ClassRow:
    """What was measured of one class.

    Attributes:
        index: Of the class.
        counts: How many of its images got each answer.
    """

    index: int
    counts: list[int]

    @property
    def images(self) -> int:
        """How many are of this class."""
        return sum(self.counts)

    @property
    def correct(self) -> int:
        """How many of them were answered rightly."""
        return self.counts[self.index]

    @property
    def accuracy(self) -> float | None:
        """Fraction of its images that were answered rightly; None if it has none."""
        return self.correct / self.images if self.images else None

    @property
    def taken_for(self) -> int | None:
        """The most frequent wrong answer, of equal ones the first; None if there is no wrong answer."""
        return max(self.confusions(), key=lambda j: self.counts[j], default=None)

    def confusions(self) -> list[int]:
        """All wrong answers that were given."""
        return [j for j, n in enumerate(self.counts) if n and j != self.index]
