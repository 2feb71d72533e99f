"""Peak memory against depth, for the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.benchmark.failures import one_line
from train.benchmark.growth import fit_growth
from train.benchmark.measure import peak_of_step
from train.benchmark.progress import bar
from train.benchmark.step import Case
from train.benchmark.table import MB, aligned, conditions
from train.benchmark.variants import Variant, without_second_naive

LARGEST_BATCH = 16  # 3 GB for the naive network at L=250 k=12, and seconds for a step


@dataclass(frozen=True)
class PeaksByDepth:
    """Peak memory of a step above weights, gradients and batch.

    Attributes:
        depths: Ascending.
        peaks: Bytes for each depth, by variant.
        case: Its growth rate, batch and precision hold for all depths.
        nonlinearity: Largest share by which the peak with three times this batch differs from the line through the
            peaks with once and twice this batch, at the smallest depth.
    """

    depths: list[int]
    peaks: dict[str, list[int]]
    case: Case
    nonlinearity: float

    def as_text(self) -> str:
        """A table in MB with a row for each variant."""
        header = [f"peak MB, batch {self.case.batch_size}", *(f"L={depth}" for depth in self.depths)]
        rows = [[name, *(f"{peak / MB:,.1f}" for peak in peaks)] for name, peaks in self.peaks.items()]
        return f"{aligned([header, *rows])}\n\n{self.note()}"

    def note(self) -> str:
        """What other batches need, and how it was measured."""
        images = self.case.batch_size
        return (
            f"linear in the batch: {3 * images} images at L={self.depths[0]} lie within {self.nonlinearity:.1%} "
            f"of the line through {images} and {2 * images}\n{conditions(self.case)}"
        )


def peaks_by_depth(variants: Sequence[Variant], case: Case, *, depths: Sequence[int]) -> PeaksByDepth:
    """Measure variants at all depths, and check once that memory is linear in the batch.

    To compile at each depth would take hours, so that what is compiled is left out.

    Args:
        variants: Naive in both memory formats first; one of them is enough.
        case: At most LARGEST_BATCH of its images are used. Its depth is not used.
        depths: In any order.
    """
    chosen = [variant for variant in without_second_naive(variants) if not variant.is_compiled]
    depths, images = sorted(set(depths)), min(case.batch_size, LARGEST_BATCH)
    case = replace(case, batch_size=images)
    sizes = [(variant, depth) for variant in chosen for depth in depths]
    measured = [_peak(variant, replace(case, depth=depth)) for variant, depth in bar(sizes, "memory by depth")]
    peaks = {variant.name: measured[i * len(depths) :][: len(depths)] for i, variant in enumerate(chosen)}
    nonlinearity = max(_nonlinearity(variant, replace(case, depth=depths[0])) for variant in chosen)
    return PeaksByDepth(depths, peaks, case, nonlinearity)


def _peak(variant: Variant, case: Case) -> int:
    with one_line(variant.name, case):
        return peak_of_step(variant.step(case))


def _nonlinearity(variant: Variant, case: Case) -> float:
    sizes = (case.batch_size, 2 * case.batch_size, 3 * case.batch_size)
    *points, check = ((images, _peak(variant, replace(case, batch_size=images))) for images in sizes)
    return abs(fit_growth(points, check).error)
