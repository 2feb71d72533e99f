"""Peak memory and time against depth, for the picture and the table below it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.utils.flop_counter import FlopCounterMode

from commands.benchmark.failures import one_line
from commands.benchmark.growth import fit_growth
from commands.benchmark.measure import paired_seconds, peak_of_step
from commands.benchmark.step import Case
from commands.benchmark.table import MB, conditions
from commands.benchmark.variants import Variant, without_second_naive
from commands.tables import aligned
from train.terminal import progress

MEANING_OF_GFLOP = "where ms/GFLOP does not grow, time grows as the work of the convolutions does"
LARGEST_BATCH = 16  # 3 GB for the naive DenseNet-BC at L=250 k=12, and seconds for a step


@dataclass(frozen=True)
class ByDepth:
    """What a step takes at several depths.

    Attributes:
        depths: Ascending.
        peaks: Bytes above weights, gradients and batch for each depth, by variant.
        seconds: Median time of a step for each depth, by variant; empty if it was not measured.
        flops: Floating-point operations of the naive network's step for each depth.
        case: Its growth rate, batch and precision hold for all depths.
        nonlinearity: By variant, the share by which the peak with three times this batch differs from the line through
            the peaks with once and twice this batch, at the smallest depth.
    """

    depths: list[int]
    peaks: dict[str, list[int]]
    seconds: dict[str, list[float]]
    flops: list[int]
    case: Case
    nonlinearity: dict[str, float]

    def as_text(self) -> str:
        """Tables with a row for each variant: MB, and if time was measured, seconds and milliseconds per GFLOP."""
        tables = [self._table("peak MB", self.peaks, lambda peak, flops: f"{peak / MB:,.1f}")]
        if self.seconds:
            tables.append(self._table("s/step", self.seconds, lambda seconds, flops: f"{seconds:.3f}"))
            per_gflop = self._table("ms/GFLOP", self.seconds, lambda seconds, flops: f"{1e12 * seconds / flops:.2f}")
            gflop = ", ".join(f"{flops / 1e9:,.0f}" if flops > 1e10 else f"{flops / 1e9:.2g}" for flops in self.flops)
            tables += [per_gflop, f"GFLOP of a step of naive: {gflop}; {MEANING_OF_GFLOP}"]
        return "\n\n".join([*tables, self.note()])

    def _table(self, title: str, values: dict[str, list[float]], form: Callable[[float, int], str]) -> str:
        header = [f"{title}, batch {self.case.batch_size}", *(f"L={depth}" for depth in self.depths)]
        return aligned([header, *([name, *map(form, of_depths, self.flops)] for name, of_depths in values.items())])

    def note(self) -> str:
        """What other batches need, and how it was measured."""
        images, worst = self.case.batch_size, max(self.nonlinearity, key=self.nonlinearity.get)
        return (
            f"peak memory grows linearly with the batch: at L={self.depths[0]}, {3 * images} images take what {images} "
            f"and {2 * images} predict, within {self.nonlinearity[worst]:.1%} ({worst})\n{conditions(self.case)}"
        )


def measure_by_depth(variants: Sequence[Variant], case: Case, *, depths: Sequence[int], rounds: int) -> ByDepth:
    """Measure variants at all depths, and check once that memory is linear in the batch.

    To compile at each depth would take hours, so that what is compiled is left out.

    Args:
        variants: Naive in both memory formats first; one of them is enough.
        case: At most LARGEST_BATCH of its images are used. Its depth is not used.
        depths: In any order.
        rounds: How often each variant is timed; 0 leaves time out.
    """
    chosen = [variant for variant in without_second_naive(variants) if not variant.is_compiled]
    images = min(case.batch_size, LARGEST_BATCH)
    cases = [replace(case, depth=depth, batch_size=images) for depth in sorted(set(depths))]
    sizes = [(variant, case) for variant in chosen for case in cases]
    measured = [_peak(variant, case) for variant, case in progress(sizes, "memory by depth")]
    seconds = [_seconds(chosen, case, rounds) for case in cases] if rounds else []
    return ByDepth(
        depths=[case.depth for case in cases],
        peaks={variant.name: measured[i * len(cases) :][: len(cases)] for i, variant in enumerate(chosen)},
        seconds={variant.name: [of_case[i] for of_case in seconds] for i, variant in enumerate(chosen) if seconds},
        flops=[_flops(chosen[0], case) for case in cases],
        case=cases[0],
        nonlinearity={variant.name: _nonlinearity(variant, cases[0]) for variant in chosen},
    )


def _seconds(variants: Sequence[Variant], case: Case, rounds: int) -> list[float]:
    """Median time of a step of each variant; they take turns, and the first turn is not counted."""
    steps = [variant.step(case) for variant in variants]
    return [statistics.median(of_step[1:]) for of_step in paired_seconds(steps, rounds=rounds + 1)]


def _flops(variant: Variant, case: Case) -> int:
    step = variant.step(case)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _peak(variant: Variant, case: Case) -> int:
    with one_line(variant.name, case):
        return peak_of_step(variant.step(case))


def _nonlinearity(variant: Variant, case: Case) -> float:
    sizes = (case.batch_size, 2 * case.batch_size, 3 * case.batch_size)
    *points, check = ((images, _peak(variant, replace(case, batch_size=images))) for images in sizes)
    return abs(fit_growth(points, check).error)
