"""The largest batch and the deepest or largest network that fit into a given memory, for each of our strategies.

The bytes are counted (see `count`), so that neither the GPU nor the memory has to be there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from commands.benchmark.count import training_bytes
from commands.benchmark.step import MB, Case, conditions, record_of
from commands.benchmark.variants import Variant, without_second_naive
from commands.memory import GB
from commands.networks import DEPTHS
from commands.tables import aligned, to_csv
from models import IMAGENET_NETWORKS
from train.terminal import progress

BATCHES = range(1, 1_000_001)  # as --batch_size allows
# Deeper than any network of the paper. A count takes time for each layer: 5 to 10 seconds at this depth.
LARGEST_DEPTH = 300


@dataclass(frozen=True)
class Answer:
    """The sizes that fit for one strategy.

    Attributes:
        strategy: Its name.
        needed: Bytes that the given network takes with the given batch.
        largest_batch: None if not even one image fits.
        largest_depth: None if not even the shallowest network fits, or if the network has one depth.
        networks: The ImageNet networks that fit with the given batch; empty unless the given network is one of them.
    """

    strategy: str
    needed: int
    largest_batch: int | None
    largest_depth: int | None = None
    networks: tuple[str, ...] = ()

    def cells(self, case: Case) -> list[str]:
        """The row as it is printed."""
        cells = [self.strategy, f"{self.needed / MB:,.1f}", f"{self.largest_batch:,}" if self.largest_batch else "none"]
        if case.network.has_depth:
            return [*cells, _depth_in_words(self.largest_depth, case)]
        return [*cells, ", ".join(name.removeprefix("densenet") for name in self.networks) or "none"]

    def record(self) -> dict[str, object]:
        """The row for CSV."""
        return {
            "strategy": self.strategy,
            "bytes": self.needed,
            "largest_batch": self.largest_batch,
            "largest_depth": self.largest_depth,
            "networks": " ".join(self.networks) or None,
        }


def _depth_in_words(depth: int | None, case: Case) -> str:
    if depth is None:
        return "none"
    return f"{depth:,} or more" if depth == _depths(case)[-1] else f"{depth:,}"


@dataclass(frozen=True)
class Fitting:
    """All that fits into a budget.

    Attributes:
        case: Its network for the largest batch, its batch for the deepest network.
        budget: Its size in bytes.
        answers: One for each strategy.
    """

    case: Case
    budget: float
    answers: list[Answer]

    def as_text(self) -> str:
        """The table, its conclusions, what it leaves out, and how it was counted."""
        last = "deepest network" if self.case.network.has_depth else "networks that fit"
        header = ["", f"MB, batch {self.case.batch_size:,}", "largest batch", last]
        rows = aligned([header, *(answer.cells(self.case) for answer in self.answers)])
        title = f"What fits into {self.budget / GB:g} GB (10^9 bytes): {self.case.title}, {self.case.precision}"
        return "\n".join([title, "", rows, "", *self._conclusions(), "", *self._legend()])

    def _conclusions(self) -> list[str]:
        network, batch = self.case.size, self.case.batch_size
        fitting = [answer.strategy for answer in self.answers if answer.needed <= self.budget]
        lines = [f"{network} with batches of {batch} fits with {', '.join(fitting) or 'none of them'}."]
        best, strategies = self._best(lambda answer: answer.largest_batch or 0)
        if best.largest_batch:
            lines.append(f"The largest batch for {network} is {best.largest_batch:,}, with {strategies}.")
        best, strategies = self._best(lambda answer: answer.largest_depth or 0)
        if best.largest_depth:
            depth = _depth_in_words(best.largest_depth, self.case)
            lines.append(f"The deepest network with batches of {batch} has depth {depth}, with {strategies}.")
        best, strategies = self._best(lambda answer: len(answer.networks))
        if best.networks:
            lines.append(f"With {strategies} and batches of {batch}, these networks fit: {', '.join(best.networks)}.")
        return lines

    def _best(self, size: Callable[[Answer], int]) -> tuple[Answer, str]:
        """An answer of the largest size, and the names of all strategies that reach it."""
        largest = max(map(size, self.answers))
        best = [answer for answer in self.answers if size(answer) == largest]
        return best[0], ", ".join(answer.strategy for answer in best)

    def _legend(self) -> list[str]:
        kind = "GPU" if self.case.device.type == "cuda" else "CPU"
        lines = [f"MB: weights, their gradients and momentum, buffers, batch, and the peak of a step on a {kind}"]
        if self.case.network.has_depth:
            lines.append(f"deepest network: depths up to {_depths(self.case)[-1]} are tried")
        lines += [
            "These are bytes of tensors, counted without running the step. On a GPU the CUDA context, cuDNN's",
            "workspaces and unused parts of the allocator's blocks come on top and are not counted.",
        ]
        if kind == "CPU":
            lines.append(
                "For a GPU this is an estimate: it assumes that operators there allocate what they do on a CPU."
            )
        return [*lines, conditions(self.case)]

    def as_csv(self) -> bytes:
        """A line for each strategy, with the case in further columns."""
        constants = {"budget_bytes": self.budget} | record_of(self.case)
        return to_csv([answer.record() | constants for answer in self.answers])


def find_what_fits(variants: Sequence[Variant], case: Case, *, budget: float) -> Fitting:
    """Find what fits into a budget in bytes with each of our strategies."""
    ours = [variant for variant in without_second_naive(variants) if variant.is_ours]
    return Fitting(case, budget, [_answer(variant, case, budget) for variant in progress(ours, "memory")])


def _answer(variant: Variant, case: Case, budget: float) -> Answer:
    def bytes_with_batch(batch_size: int) -> int:
        return training_bytes(variant, case.resized(batch_size=batch_size)).step

    def bytes_at_depth(depth: int) -> int:
        return training_bytes(variant, case.resized(depth=depth)).total

    needed = training_bytes(variant, case)
    batch = largest_that_fits(bytes_with_batch, BATCHES, budget=budget - needed.state, first=case.batch_size)
    if not case.network.has_depth:
        return Answer(variant.name, needed.total, batch, networks=_networks_that_fit(variant, case, budget))
    depth = largest_that_fits(bytes_at_depth, _depths(case), budget=budget, first=case.network.depth)
    return Answer(variant.name, needed.total, batch, depth)


def _depths(case: Case) -> range:
    """The depths that are tried, up to that of the case at least."""
    limits = DEPTHS[case.network.network]
    return range(int(limits.low), max(LARGEST_DEPTH, case.network.depth) + 1, limits.step or 1)


def _networks_that_fit(variant: Variant, case: Case, budget: float) -> tuple[str, ...]:
    def bytes_of(name: str) -> int:
        entry = IMAGENET_NETWORKS[name]
        network = replace(case.network, network=name, depth=entry.depth, growth_rate=entry.growth_rate)
        return training_bytes(variant, case.resized(network=network)).total

    return tuple(name for name in IMAGENET_NETWORKS if bytes_of(name) <= budget)


def largest_that_fits(bytes_of: Callable[[int], int], sizes: range, *, budget: float, first: int) -> int | None:
    """Find the largest size whose bytes do not exceed a budget.

    The next size to count is where a line through the two known sizes nearest to the budget meets it. Bytes are so
    nearly linear that this takes a handful of sizes, where bisection would take twenty.

    Args:
        bytes_of: Bytes of a size; they grow with it.
        sizes: Ascending.
        budget: In bytes.
        first: The size to begin with.

    Returns:
        None if no size fits.
    """
    known: dict[int, int] = {}  # bytes by position in `sizes`
    position, fits, exceeds = sizes.index(first), -1, len(sizes)
    while exceeds - fits > 1:
        known[position] = bytes_of(sizes[position])
        if known[position] <= budget:
            fits = position
        else:
            exceeds = position
        position = max(fits + 1, min(exceeds - 1, _proposal(known, sizes, budget)))
    return sizes[fits] if fits >= 0 else None


def _proposal(known: dict[int, int], sizes: range, budget: float) -> int:
    """The position of the last size that fits, by a line through the two known sizes nearest to the budget."""
    nearest, *others = sorted(known, key=lambda position: abs(known[position] - budget))
    if not others:  # as if bytes were proportional to the size
        return int(min(sizes[nearest] * budget / known[nearest], sizes[-1]) - sizes[0]) // sizes.step
    slope = (known[others[0]] - known[nearest]) / (others[0] - nearest)
    return int(min(nearest + (budget - known[nearest]) / slope, len(sizes))) if slope > 0 else nearest
