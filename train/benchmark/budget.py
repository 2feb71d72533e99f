"""What fits into a given memory: the largest batch, and the deepest network, for each of our strategies.

Measured are small batches and shallow networks, so that neither the GPU nor the memory has to be there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from train.benchmark.failures import one_line
from train.benchmark.growth import Growth, fit_growth
from train.benchmark.measure import peak_of_step
from train.benchmark.progress import bar
from train.benchmark.step import Case
from train.benchmark.table import MB, conditions, record_of
from train.benchmark.variants import Variant, without_second_naive
from train.results.tables import aligned, to_csv

GB = 1e9
LARGEST_BATCH, LARGEST_DEPTH = 1_000_000, 10_000  # those of the flags
MEASURED_BYTES = 1e9  # about what the largest measured step may take
MEASURED_IMAGES = 64  # a third of the images of the largest measured step, at most
# Depths 6m + 4. Bytes are at most quadratic in m (what naive keeps, and the weights), so that three points determine
# them but for the rounding of halved channels.
FITTED_DEPTHS, CHECKED_DEPTH = (28, 52, 76), 100


@dataclass(frozen=True)
class Answer:
    """What fits for one strategy.

    Attributes:
        strategy: Its name.
        by_batch: Bytes of the given network as a function of the batch.
        by_depth: Bytes with the given batch as a function of the depth.
        checked_batch: Batch of the measurement that by_batch was compared with.
        largest_batch: None if not even one image fits.
        largest_depth: None if not even the shallowest network fits.
    """

    strategy: str
    by_batch: Growth
    by_depth: Growth
    checked_batch: int
    largest_batch: int | None
    largest_depth: int | None

    def cells(self) -> list[str]:
        """The row as it is printed."""
        fixed, per_image = self.by_batch.bytes_at.coef
        batch, depth = (f"{size:,}" if size else "none" for size in (self.largest_batch, self.largest_depth))
        errors = [f"{growth.error:+.2%}" for growth in (self.by_batch, self.by_depth)]
        return [self.strategy, f"{fixed / MB:,.1f}", f"{per_image / MB:,.2f}", errors[0], batch, errors[1], depth]

    def record(self) -> dict[str, object]:
        """The row as CSV has it, in bytes and shares."""
        fixed, per_image = self.by_batch.bytes_at.coef
        return {
            "strategy": self.strategy,
            "fixed_bytes": round(fixed),
            "bytes_per_image": round(per_image),
            "error_with_batch": self.by_batch.error,
            "largest_batch": self.largest_batch,
            "error_with_depth": self.by_depth.error,
            "largest_depth": self.largest_depth,
        }


@dataclass(frozen=True)
class Fitting:
    """What fits into a budget in bytes.

    Attributes:
        case: The network whose batch, and the batch whose network was asked for.
        budget: In bytes.
        answers: One for each strategy.
    """

    case: Case
    budget: float
    answers: list[Answer]

    def as_text(self) -> str:
        """The table with what it comes to, what it leaves out, and how it was measured."""
        header = ["", "fixed MB", "MB per image", "error", "largest batch", "error", "deepest network"]
        rows = aligned([header, *(answer.cells() for answer in self.answers)])
        title = f"What fits into {self.budget / GB:g} GB (10^9 bytes): {self.case.title}, {self.case.precision}"
        return "\n".join([title, "", rows, "", *self._verdict(), "", *self._legend()])

    def _verdict(self) -> list[str]:
        depth, batch = self.case.depth, self.case.batch_size
        fitting = [answer.strategy for answer in self.answers if answer.by_batch.bytes_at(batch) <= self.budget]
        lines = [f"L={depth} with batches of {batch} fits with {', '.join(fitting) or 'none of them'}."]
        best = max(self.answers, key=lambda answer: answer.largest_batch or 0)
        if best.largest_batch:
            lines.append(f"The largest batch for L={depth} is {best.largest_batch:,}, with {best.strategy}.")
        best = max(self.answers, key=lambda answer: answer.largest_depth or 0)
        if best.largest_depth:
            lines.append(
                f"The deepest network with batches of {batch} is L={best.largest_depth}, with {best.strategy}."
            )
        return lines

    def _legend(self) -> list[str]:
        batches = ", ".join(f"{answer.checked_batch} ({answer.strategy})" for answer in self.answers)
        on_gpu = self.case.device.type == "cuda"
        lines = [
            "fixed: weights, their gradients and momentum, buffers, and what a step takes whatever the batch",
            "error: how much more was measured than the fit says, at a point that it does not know;",
            f"  of the line through two batches at batch {batches},",
            f"  of the parabola through L={', '.join(map(str, FITTED_DEPTHS))} at L={CHECKED_DEPTH}",
            f"These are bytes of tensors, measured on this {'GPU' if on_gpu else 'CPU'} and extrapolated. On a GPU the "
            "CUDA context, cuDNN's workspaces",
            "and unused parts of the allocator's blocks come on top and are not counted.",
        ]
        estimate = "For a GPU this is an estimate: it assumes that operators there allocate what they do on the CPU."
        return [*lines, *([] if on_gpu else [estimate]), conditions(self.case)]

    def as_csv(self) -> str:
        """A line for each strategy, with the case in further columns."""
        constants = {"budget_bytes": self.budget} | record_of(self.case)
        return to_csv([answer.record() | constants for answer in self.answers])


def find_what_fits(variants: Sequence[Variant], case: Case, *, budget: float) -> Fitting:
    """Measure our strategies and find what fits into a budget in bytes; rivals are left out."""
    ours = [variant for variant in without_second_naive(variants) if variant.is_ours]
    return Fitting(case, budget, [_answer(variant, case, budget) for variant in bar(ours, "memory")])


def _answer(variant: Variant, case: Case, budget: float) -> Answer:
    by_batch, checked_batch = growth_with_batch(variant, case)
    by_depth = growth_with_depth(variant, case)
    largest_batch = by_batch.largest_within(budget, range(1, LARGEST_BATCH + 1))
    largest_depth = by_depth.largest_within(budget, range(10, LARGEST_DEPTH + 1, 6))
    return Answer(variant.name, by_batch, by_depth, checked_batch, largest_batch, largest_depth)


def growth_with_batch(variant: Variant, case: Case) -> tuple[Growth, int]:
    """Fit bytes to two batches and check a third; return the fit and the third."""
    images = _small_batch(variant, case)
    first, second, third = (
        (count, training_bytes(variant, replace(case, batch_size=count))) for count in (images, 2 * images, 3 * images)
    )
    return fit_growth([first, second], check=third), 3 * images


def growth_with_depth(variant: Variant, case: Case) -> Growth:
    """Fit bytes with the batch of the case to three depths and check a fourth.

    Two small batches are measured at each depth; the whole batch lies on the line through them.
    """
    images = _small_batch(variant, replace(case, depth=CHECKED_DEPTH))

    def bytes_at(depth: int) -> float:
        one, two = (training_bytes(variant, replace(case, depth=depth, batch_size=n)) for n in (images, 2 * images))
        return one + (two - one) * (case.batch_size - images) / images

    *points, check = ((depth, bytes_at(depth)) for depth in (*FITTED_DEPTHS, CHECKED_DEPTH))
    return fit_growth(points, check)


def _small_batch(variant: Variant, case: Case) -> int:
    """A power of two, such that three times this batch needs about MEASURED_BYTES at most if one image does."""
    bytes_of_two = training_bytes(variant, replace(case, batch_size=2))
    affordable = MEASURED_BYTES / (3 * bytes_of_two / 2)
    return min(MEASURED_IMAGES, 2 ** max(0, math.floor(math.log2(affordable))))


def training_bytes(variant: Variant, case: Case) -> int:
    """Count weights, gradients, momentum, buffers and batch, and measure the peak of a step above them.

    The sum is a little more than a step needs: where the peak is, not all gradients exist.
    """
    with one_line(variant.name, case):
        step = variant.step(case)
        return peak_of_step(step) + state_bytes(step.network) + step.images.nbytes + step.labels.nbytes


def state_bytes(network: nn.Module) -> int:
    """Bytes of weights, gradients, momentum and buffers."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 3 * weights + sum(buffer.nbytes for buffer in network.buffers())
