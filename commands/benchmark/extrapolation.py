"""What training takes in memory as a function of the batch and of the depth, from measurements of small steps.

What is fitted is a polynomial only where a step is large enough. Strategies over a feature buffer work in chunks
(`models/rows.py`): all of a small buffer is one chunk, so that what is computed from it takes as much as the buffer; on
a CPU chunks stay at 2 MiB once the buffer is larger than that, are a third of it from 6 MiB on, and stay at 8 MiB from
24 MiB on. At each of these points the line of memory against the batch has a bend. So steps are measured as near to the
answer as can be afforded, and each fit is checked.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from commands.benchmark.failures import one_line
from commands.benchmark.growth import Growth, fit_growth, polynomial_through
from commands.benchmark.measure import peak_of_step
from commands.benchmark.step import Case
from commands.benchmark.variants import Variant

MEASURED_BYTES = 1e9  # about what the largest measured step may take
# Depths are 4 + 24 n: both 6m + 4 and 3m + 4. Bytes are at most quadratic in m (what naive keeps, and the weights), so
# that three points determine them but for the rounding of halved channels. First n = 1, 2, 3 and 4 as the check. Twice
# and four times these n follow if they can be afforded: only there are the buffers of a small network large enough.
# Weights are few in shallow networks and many in deep ones. They are counted, so that no error of the fit hides them.
LAYERS_BETWEEN_DEPTHS = 24
FACTORS_OF_DEPTHS = (1, 2, 4)


def growth_with_batch(variant: Variant, case: Case, *, budget: float) -> Growth:
    """Fit bytes to two batches and check a third: as near to what fits into the budget as MEASURED_BYTES allows."""
    images = _measured_batch(variant, case, limit=min(budget, MEASURED_BYTES))
    *points, check = (
        (count, training_bytes(variant, replace(case, batch_size=count))) for count in (images, 2 * images, 3 * images)
    )
    return fit_growth(points, check)


def growth_with_depth(variant: Variant, case: Case, *, budget: float) -> Growth:
    """Fit bytes with the batch of the case to three depths and check a fourth, as near to what fits as can be."""
    for factor in FACTORS_OF_DEPTHS:
        growth = _fit_depths(variant, case, [4 + LAYERS_BETWEEN_DEPTHS * factor * n for n in (1, 2, 3, 4)])
        if growth.bytes_at(2 * growth.checked_size) > min(budget, MEASURED_BYTES):
            break
    return growth


def _fit_depths(variant: Variant, case: Case, depths: Sequence[int]) -> Growth:
    """Fit bytes to all depths but the last, and check that one.

    A batch that is too large to be measured at the last depth lies on the line through two small ones, at each depth.
    """
    images = _measured_batch(variant, replace(case, depth=depths[-1]), limit=MEASURED_BYTES)

    def bytes_at(depth: int) -> float:
        if case.batch_size <= 3 * images:
            return training_bytes(variant, replace(case, depth=depth))
        one, two = (training_bytes(variant, replace(case, depth=depth, batch_size=n)) for n in (images, 2 * images))
        return one + (two - one) * (case.batch_size - images) / images

    *points, check = ((depth, bytes_at(depth)) for depth in depths)
    states = [(depth, _state_bytes_of(variant, replace(case, depth=depth))) for depth in depths[1:]]
    return fit_growth(points, check, known=polynomial_through(states))


def _measured_batch(variant: Variant, case: Case, *, limit: float) -> int:
    """A power of two, such that three times this batch needs about `limit` bytes at most if one image does."""
    fixed = _state_bytes_of(variant, case)
    bytes_of_an_image = (training_bytes(variant, replace(case, batch_size=2)) - fixed) / 2
    affordable = (limit - fixed) / bytes_of_an_image / 3
    return 2 ** math.floor(math.log2(max(1, affordable)))


@cache  # some sizes are asked for more than once
def training_bytes(variant: Variant, case: Case) -> int:
    """Count weights, gradients, momentum, buffers and batch, and measure the peak of a step above them.

    The sum is a little more than a step needs: where the peak is, not all gradients exist.
    """
    with one_line(variant.name, case):
        step = variant.step(case)
        return peak_of_step(step) + state_bytes(step.network) + step.images.nbytes + step.labels.nbytes


def _state_bytes_of(variant: Variant, case: Case) -> int:
    with torch.device("meta"):  # where a network takes no memory
        return state_bytes(variant.build(**case.settings))


def state_bytes(network: nn.Module) -> int:
    """Bytes of weights, gradients, momentum and buffers."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 3 * weights + sum(buffer.nbytes for buffer in network.buffers())
