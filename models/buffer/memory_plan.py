"""Which bottlenecks a network keeps for its backward pass because that costs nothing at the peak of a step.

The peak is reached in the backward pass of one stage, mostly the first, when the later ones have given back what they
kept. Until then memory lies idle: where it is large enough for bottlenecks of later stages, to keep them saves their
second computation.

All large tensors have one type, but for masks of dropout, which take a byte for each value and are kept in any case. R
rows and C channels of a stage's feature buffer, m layers, b channels of a bottleneck.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class StageSize(NamedTuple):
    """Of a dense block and what reads it.

    Attributes:
        num_rows: R.
        num_features: C.
        num_layers: m.
        num_inner: b, the largest of all layers; 0 without bottlenecks, all of which are then free to keep.
        num_masked: Columns of all masks.
        itemsize: Bytes of a number.
    """

    num_rows: int
    num_features: int
    num_layers: int
    num_inner: int
    num_masked: int
    itemsize: int

    @property
    def of_buffer(self) -> int:
        """Bytes of the buffer, and of its gradient."""
        return self.itemsize * self.num_rows * self.num_features

    @property
    def of_bottleneck(self) -> int:
        """Bytes of one bottleneck."""
        return self.itemsize * self.num_rows * self.num_inner

    @property
    def of_masks(self) -> int:
        """Bytes of all masks."""
        return self.num_rows * self.num_masked


NOTHING = StageSize(0, 0, 0, 0, 0, 0)  # of a stage whose modules are called


@lru_cache
def bottlenecks_for_free(stages: tuple[StageSize, ...]) -> tuple[int, ...]:
    """How many of its last layers each stage can let keep their bottlenecks without a higher peak.

    The last stages come first: memory that they take is given back first, and their layers read the most channels, so
    that a second computation would take the longest.
    """
    counts = [0] * len(stages)
    limit = _peak(stages, counts)
    for i in reversed(range(len(stages))):
        fitting = range(stages[i].num_layers, -1, -1)
        counts[i] = next(n for n in fitting if _peak(stages, [*counts[:i], n, *counts[i + 1 :]]) <= limit)
    return tuple(counts)


def _peak(stages: Sequence[StageSize], counts: Sequence[int]) -> int:
    """The most bytes that are alive in the backward pass, without what is as large in every stage.

    In a stage there is all that this one and earlier ones keep, one buffer of gradients, the gradient of a
    bottleneck, and one bottleneck that is computed again.
    """
    kept, most = 0, 0
    for stage, count in zip(stages, counts, strict=True):
        kept += stage.of_buffer + stage.of_masks + count * stage.of_bottleneck
        num_bottlenecks = 1 if count == stage.num_layers else 2
        most = max(most, kept + stage.of_buffer + num_bottlenecks * stage.of_bottleneck)
    return most
