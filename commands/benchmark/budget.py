"""What fits into a given memory, for each of our strategies: the largest batch, and the deepest or largest network.

Measured are small batches and shallow networks, so that neither the GPU nor the memory has to be there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from commands.benchmark.extrapolation import growth_with_batch, growth_with_depth
from commands.benchmark.growth import LARGEST_ERROR, Growth
from commands.benchmark.step import Case
from commands.benchmark.table import MB, conditions, record_of
from commands.benchmark.variants import Variant, without_second_naive
from commands.networks import DEPTHS, FIXED
from commands.tables import aligned, to_csv
from train.terminal import progress

GB = 1e9
LARGEST_BATCH = 1_000_000  # that of the flag


@dataclass(frozen=True)
class Answer:
    """What fits for one strategy.

    Attributes:
        strategy: Its name.
        by_batch: Bytes of the given network as a function of the batch.
        largest_batch: None if not even one image fits.
        by_depth: Bytes with the given batch as a function of the depth; None if the network has one depth.
        largest_depth: None if not even the shallowest network fits, or the network has one depth.
        networks: Those for ImageNet that fit with the given batch, if the given one is one of them.
    """

    strategy: str
    by_batch: Growth
    largest_batch: int | None
    by_depth: Growth | None = None
    largest_depth: int | None = None
    networks: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """The row as it is printed."""
        fixed, per_image = self.by_batch.bytes_at.coef
        cells = [self.strategy, "-" if fixed < 0 else f"{fixed / MB:,.1f}", f"{per_image / MB:,.2f}"]
        cells += [f"{self.by_batch.error:+.2%}", _size(self.largest_batch, self.by_batch)]
        if not self.by_depth:
            numbers = [name.removeprefix("densenet") for name in self.networks]
            return [*cells, ", ".join(numbers) or "none"]
        return [*cells, f"{self.by_depth.error:+.2%}", _size(self.largest_depth, self.by_depth)]

    def warnings(self) -> list[str]:
        """A line for each answer that its check does not confirm."""
        lines = []
        for what, growth in (("batch", self.by_batch), ("depth", self.by_depth)):
            if growth and growth.is_uncertain:
                measured, rest = ("less", "more") if growth.error < 0 else ("more", "less")
                misses = f"{abs(growth.error):.0%} {measured} was measured than the fit says"
                lines.append(f"{self.strategy}: at {what} {growth.checked_size}, {misses}, so that {rest} may fit.")
        return lines

    def record(self) -> dict[str, object]:
        """The row as CSV has it, in bytes and shares."""
        fixed, per_image = self.by_batch.bytes_at.coef
        return {
            "strategy": self.strategy,
            "fixed_bytes": round(fixed),
            "bytes_per_image": round(per_image),
            "error_with_batch": self.by_batch.error,
            "largest_batch": self.largest_batch,
            "error_with_depth": self.by_depth.error if self.by_depth else None,
            "largest_depth": self.largest_depth,
            "networks": " ".join(self.networks) or None,
        }


def _size(size: int | None, growth: Growth) -> str:
    """A size in words that do not say more than the check of its fit allows."""
    if not size:
        return "none"
    hedge = ("at least " if growth.error < 0 else "about ") if growth.is_uncertain else ""
    return f"{hedge}{size:,}"


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
        of_network = ["error", "deepest network"] if self.case.has_depth else ["networks that fit"]
        header = ["", "fixed MB", "MB per image", "error", "largest batch", *of_network]
        rows = aligned([header, *(answer.cells() for answer in self.answers)])
        title = f"What fits into {self.budget / GB:g} GB (10^9 bytes): {self.case.title}, {self.case.precision}"
        return "\n".join([title, "", rows, "", *self._verdict(), "", *self._legend()])

    def _verdict(self) -> list[str]:
        network, batch = self.case.size, self.case.batch_size
        fitting = [answer.strategy for answer in self.answers if answer.by_batch.bytes_at(batch) <= self.budget]
        lines = [f"{network} with batches of {batch} fits with {', '.join(fitting) or 'none of them'}."]
        best = self._best(lambda answer: answer.largest_batch)
        if best.largest_batch:
            size = _size(best.largest_batch, best.by_batch)
            lines.append(f"The largest batch for {network} is {size}, with {best.strategy}.")
        best = self._best(lambda answer: answer.largest_depth)
        if best.largest_depth:
            size = _size(best.largest_depth, best.by_depth)
            lines.append(f"The deepest network with batches of {batch} has depth {size}, with {best.strategy}.")
        best = self._best(lambda answer: len(answer.networks))
        if best.networks:
            lines.append(f"With {best.strategy} and batches of {batch} fit {', '.join(best.networks)}.")
        return lines + [line for answer in self.answers for line in answer.warnings()]

    def _best(self, size: Callable[[Answer], int | None]) -> Answer:
        return max(self.answers, key=lambda answer: size(answer) or 0)

    def _legend(self) -> list[str]:
        on_gpu = self.case.device.type == "cuda"
        lines = [
            "fixed: weights, their gradients and momentum, buffers, and what a step takes whatever the batch;",
            "  - where the line through the last points begins below 0",
            "error: how much more was measured than a fit says, at a point that it does not know. A fit that says too",
            f"  little is made again with that point. Above {LARGEST_ERROR:.0%}, answers say at least or about.",
            f"  largest batch: line through two batches, at batch {self._checks(lambda answer: answer.by_batch)}",
        ]
        if self.case.has_depth:
            lines.append(
                f"  deepest network: parabola through three depths, at L={self._checks(lambda answer: answer.by_depth)}"
            )
        lines += [
            f"These are bytes of tensors, measured on this {'GPU' if on_gpu else 'CPU'} and extrapolated. On a GPU the "
            "CUDA context, cuDNN's workspaces",
            "and unused parts of the allocator's blocks come on top and are not counted.",
        ]
        estimate = "For a GPU this is an estimate: it assumes that operators there allocate what they do on the CPU."
        return [*lines, *([] if on_gpu else [estimate]), conditions(self.case)]

    def _checks(self, growth: Callable[[Answer], Growth]) -> str:
        """The sizes that were measured to check the fits."""
        return ", ".join(f"{growth(answer).checked_size} ({answer.strategy})" for answer in self.answers)

    def as_csv(self) -> bytes:
        """A line for each strategy, with the case in further columns."""
        constants = {"budget_bytes": self.budget} | record_of(self.case)
        return to_csv([answer.record() | constants for answer in self.answers])


def find_what_fits(variants: Sequence[Variant], case: Case, *, budget: float) -> Fitting:
    """Measure our strategies and find what fits into a budget in bytes; rivals are left out."""
    ours = [variant for variant in without_second_naive(variants) if variant.is_ours]
    return Fitting(case, budget, [_answer(variant, case, budget) for variant in progress(ours, "memory")])


def _answer(variant: Variant, case: Case, budget: float) -> Answer:
    by_batch = growth_with_batch(variant, case, budget=budget)
    largest_batch = by_batch.largest_within(budget, range(1, LARGEST_BATCH + 1))
    if not case.has_depth:
        return Answer(variant.name, by_batch, largest_batch, networks=_networks_within(budget, variant, case))
    by_depth, limits = growth_with_depth(variant, case, budget=budget), DEPTHS[case.network]
    largest_depth = by_depth.largest_within(budget, range(limits.low, limits.high + 1, limits.step))
    return Answer(variant.name, by_batch, largest_batch, by_depth, largest_depth)


def _networks_within(budget: float, variant: Variant, case: Case) -> tuple[str, ...]:
    """The networks for ImageNet that fit into a budget in bytes with the batch of the case."""

    def bytes_of(network: str) -> float:
        fixed = FIXED[network]
        other = replace(case, network=network, depth=fixed.depth, growth_rate=fixed.growth_rate)
        return growth_with_batch(variant, other, budget=budget).bytes_at(case.batch_size)

    return tuple(network for network in FIXED if bytes_of(network) <= budget)
