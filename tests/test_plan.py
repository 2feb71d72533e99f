from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.plan import NOTHING, StageSize, bottlenecks_for_free

generated = settings(deadline=None, derandomize=True, max_examples=200)


def peak(stages: tuple[StageSize, ...], counts: tuple[int, ...]) -> int:
    """Go through the backward pass of all stages, the last one first, with the first `rows` that are alive."""
    alive = [s.num_rows * (s.num_features + n * s.num_inner) for s, n in zip(stages, counts, strict=True)]
    peaks = []
    for i in reversed(range(len(stages))):
        stage, is_recomputed = stages[i], counts[i] < stages[i].num_layers
        transient = stage.num_rows * (stage.num_features + stage.num_inner * (1 + is_recomputed))
        peaks.append(sum(alive[: i + 1]) + transient)
    return max(peaks, default=0)


sizes = st.builds(StageSize, st.integers(1, 50), st.integers(1, 50), st.integers(1, 4), st.integers(1, 10))
networks = st.lists(st.one_of(sizes, st.just(NOTHING)), min_size=1, max_size=3).map(tuple)


@generated
@given(networks)
def test_the_peak_is_not_raised_and_no_more_would_fit(stages):
    counts = bottlenecks_for_free(stages)
    assert all(0 <= count <= stage.num_layers for stage, count in zip(stages, counts, strict=True))
    limit = peak(stages, (0,) * len(stages))
    assert peak(stages, counts) <= limit
    # Stages in front may keep more only if those behind them keep less.
    better = product(*(range(count, stage.num_layers + 1) for stage, count in zip(stages, counts, strict=True)))
    assert all(peak(stages, other) > limit for other in better if other != counts)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # L=100, k=12, 64 images. Millions of numbers in buffers 14.2, 4.9 and 1.6, in bottlenecks 3.15, 0.79 and 0.20:
        # the peak is 2 * 14.2 + 2 * 3.15 = 34.6, and 14.2 + 4.9 + 11 * 0.79 + 4.9 + 2 * 0.79 = 34.2 stays below it.
        (16, (0, 11, 16)),
        # L=250: 15 of the second block leave room for all of the third, which would fit only in part behind 17.
        (41, (0, 15, 41)),
        # A layer alone in its block needs no second bottleneck if it keeps its own.
        (1, (1, 1, 1)),
    ],
)
def test_later_blocks_of_a_network_for_small_images_keep_theirs(layers, expected):
    features, stages = 24, []
    for i in range(3):
        features += 12 * layers
        stages.append(StageSize(64 * 1024 >> 2 * i, features, layers, 48))
        features //= 2
    assert bottlenecks_for_free(tuple(stages)) == expected
