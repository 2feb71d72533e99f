"""The comparison of all variants on one network and one batch."""

import statistics
from collections.abc import Sequence

from commands.benchmark.agreement import Observed, agreement_in_fp64, agreements_in_precision, observe
from commands.benchmark.failures import one_line
from commands.benchmark.measure import memory_of_step, paired_seconds
from commands.benchmark.rows import Comparison, Row
from commands.benchmark.step import Case, Step
from commands.benchmark.variants import Variant, draw_weights
from train.terminal import progress


def compare(variants: Sequence[Variant], case: Case, *, rounds: int) -> Comparison:
    """Check that our strategies agree with naive, then measure memory and time of all variants.

    Args:
        variants: Naive in both memory formats first.
        case: The network and the batch.
        rounds: How often each variant is timed; 0 leaves time out.

    Raises:
        RunError: If a strategy does not agree with naive, or the memory does not suffice.
    """
    agreements = [agreement_in_fp64(variants, case)]
    agreements[0].require()
    rows, steps, observed = _measure_memory(variants, case)
    if not case.drop_rate:  # strategies may draw other masks
        agreements += agreements_in_precision(case, observed)
    for agreement in agreements:
        agreement.require()
    for row, seconds in zip(rows, paired_seconds(steps, rounds=rounds), strict=True):
        row.seconds = seconds
    baseline = min(rows[:2], key=lambda row: statistics.median(row.seconds or [0]))
    for row in rows:
        row.ratios = [one / other for one, other in zip(row.seconds, baseline.seconds, strict=True)]
    parameters = sum(parameter.numel() for parameter in steps[0].network.parameters())
    return Comparison(case, rows, baseline, agreements, parameters)


def _measure_memory(
    variants: Sequence[Variant], case: Case
) -> tuple[list[Row], list[Step], list[tuple[str, Observed]]]:
    """Observe a first step of each variant, and measure the memory of those that follow."""
    weights = draw_weights(variants[0], case)
    rows, steps, observed = [], [], []
    for variant in progress(variants, "memory"):
        with one_line(variant.name, case):
            step = variant.step(case, weights)
            seen = observe(step)
            memory = memory_of_step(step)
        updates = max(int(value) for name, value in seen.items() if name.endswith("num_batches_tracked"))
        rows.append(Row(variant, memory, updates))
        steps.append(step)
        if variant.is_ours:
            observed.append((variant.name, seen))
    return rows, steps, observed
