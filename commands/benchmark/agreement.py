"""Check that a strategy trains as the naive network does: loss, gradients and running statistics of one step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from commands.benchmark.step import Case, Step
from commands.benchmark.variants import Variant, random_weights, without_second_naive
from train.errors import RunError

GRADIENT = "gradient of "  # followed by the name of a parameter
FP64_BATCH = 8  # images; a step in fp64 takes twice the memory and time
# In fp64 two correct orders of summation differ by about 1e-13 at L=100; a forgotten term shows from 1e-4 on.
FP64_LARGEST = 1e-9
# In lower precision rounding decides near zero which gradients pass a ReLU. Two memory formats of the naive network
# differ by 0.007 (fp32) and 0.2 (bf16) of the whole gradient at L=100, and by 1e-6 and 5e-4 of running statistics.
# A deeper network differs by more.
LARGEST_FORWARD = {"fp32": 1e-4, "tf32": 0.01, "bf16": 0.01, "fp16": 0.01}
LARGEST_GRADIENT = {"fp32": 0.05, "tf32": 0.6, "bf16": 0.6, "fp16": 0.6}
TIMES_NAIVE = 2
LARGEST = 0.9  # a gradient of zeros differs by 1

Observed = dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The difference between a variant and naive.

    Attributes:
        variant: Its name.
        value: Relative difference; 0 means equal to the last bit.
        where: The tensor that differs most.
    """

    variant: str
    value: float
    where: str


@dataclass(frozen=True)
class Agreement:
    """Differences of all strategies, measured in one way.

    Attributes:
        conditions: Precision, batch, and the part that was compared.
        differences: One for each strategy.
        allowed: The largest difference that rounding explains.
        of_naive: Difference between naive's two memory formats, if that was measured.
    """

    conditions: str
    differences: Sequence[Difference]
    allowed: float
    of_naive: float | None = None

    def require(self) -> None:
        """Raise an error if a strategy does not agree.

        Raises:
            RunError: The message names strategy, tensor, difference and the allowed difference.
        """
        for difference in self.differences:
            if not difference.value <= self.allowed:
                raise RunError(
                    f"{difference.variant} does not agree with naive: {difference.where} differs by "
                    f"{difference.value:.1e} in {self.conditions}, allowed is {self.allowed:.1e}"
                )

    def describe(self) -> str:
        """One line for a reader of the table."""
        values = ", ".join(f"{difference.variant} {difference.value:.1e}" for difference in self.differences)
        rounding = "" if self.of_naive is None else f"; naive's memory formats {self.of_naive:.1e}"
        return f"{self.conditions}: {values} (allowed {self.allowed:.1e}{rounding})"


def observe(step: Step) -> Observed:
    """Run a step and copy its loss, all gradients and all buffers of the network."""
    loss = step()
    gradients = {f"{GRADIENT}{name}": parameter.grad for name, parameter in step.network.named_parameters()}
    tensors = {"loss": loss, **gradients, **dict(step.network.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if tensor is not None}


def largest_difference(variant: str, expected: Observed, actual: Observed) -> Difference:
    """Compare tensor by tensor: the largest difference of two elements over the largest element."""
    ratios = {name: _relative(expected[name], actual[name], math.inf) for name in expected}
    where = max(ratios, key=ratios.__getitem__)
    return Difference(variant, ratios[where], where)


def forward_difference(variant: str, expected: Observed, actual: Observed) -> Difference:
    """Compare the loss, and all buffers as one vector: norm of the difference over norm of the expected vector."""
    buffers = [name for name in expected if name != "loss" and not name.startswith(GRADIENT)]
    ratios = {
        "the loss": _relative(expected["loss"], actual["loss"], 2),
        "the whole of the running statistics": _relative(_joined(expected, buffers), _joined(actual, buffers), 2),
    }
    where = max(ratios, key=ratios.__getitem__)
    return Difference(variant, ratios[where], where)


def gradient_difference(variant: str, expected: Observed, actual: Observed) -> Difference:
    """Compare all gradients as one vector: norm of the difference over norm of the expected vector."""
    names = [name for name in expected if name.startswith(GRADIENT)]
    return Difference(variant, _relative(_joined(expected, names), _joined(actual, names), 2), "the whole gradient")


def _joined(observed: Observed, names: Iterable[str]) -> Tensor:
    return torch.cat([observed[name].double().flatten() for name in names])


def _relative(expected: Tensor, actual: Tensor, order: float) -> float:
    """Norm of the difference over norm of the expected tensor; infinite where either is NaN or infinite."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double(), order).item()
    size = torch.linalg.vector_norm(expected.double(), order).item()
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.inf
    return difference / size if size else difference


def agreement_in_fp64(variants: Sequence[Variant], case: Case) -> Agreement:
    """Compare our strategies in fp64 on a small batch, tensor by tensor.

    Args:
        variants: The first one is naive; other implementations are left out.
        case: Its precision and its dropout (strategies may drop other values) are not used, and of its images only
            the first FP64_BATCH.
    """
    images = min(case.batch_size, FP64_BATCH)
    network = replace(case.network, drop_rate=0.0)
    case = replace(case, network=network, precision="fp64", batch_size=images)
    naive, *others = (variant for variant in without_second_naive(variants) if variant.is_ours)
    weights = random_weights(naive, case)
    expected = observe(naive.step(case, weights))
    differences = [
        largest_difference(variant.name, expected, observe(variant.step(case, weights))) for variant in others
    ]
    return Agreement(f"fp64, batch {images}", differences, FP64_LARGEST)


def agreements_in_precision(case: Case, observed: Sequence[tuple[str, Observed]]) -> list[Agreement]:
    """Compare the first steps of the measured variants: the forward results as a whole, and the whole gradient.

    Args:
        case: The case of the steps.
        observed: Names and results. The first two are naive in both memory formats, which differ by rounding alone.
    """
    (_, expected), *others = observed
    agreements = []
    for part, compare, allowed in (
        ("forward", forward_difference, LARGEST_FORWARD[case.precision]),
        ("gradient", gradient_difference, LARGEST_GRADIENT[case.precision]),
    ):
        of_naive, *differences = (compare(name, expected, actual) for name, actual in others)
        allowed = min(LARGEST, max(allowed, TIMES_NAIVE * of_naive.value))
        conditions = f"{case.precision}, batch {case.batch_size}, {part}"
        agreements.append(Agreement(conditions, differences, allowed, of_naive.value))
    return agreements
