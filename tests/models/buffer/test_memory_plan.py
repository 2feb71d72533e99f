from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.buffer.memory_plan import NO_BUFFER, BlockSize, bottlenecks_for_free

generated = settings(deadline=None, derandomize=True, max_examples=200)


def peak(stages: tuple[BlockSize, ...], counts: tuple[int, ...]) -> int:
    """Go through the backward pass of all stages, the last one first, and count the bytes that are alive."""
    alive = [
        s.num_rows * (s.itemsize * (s.num_features + n * s.num_bottleneck) + s.num_masked)
        for s, n in zip(stages, counts, strict=True)
    ]
    peaks = []
    for i in reversed(range(len(stages))):
        stage, is_recomputed = stages[i], counts[i] < stages[i].num_layers
        transient = stage.itemsize * stage.num_rows * (stage.num_features + stage.num_bottleneck * (1 + is_recomputed))
        peaks.append(sum(alive[: i + 1]) + transient)
    return max(peaks, default=0)


@st.composite
def networks(draw) -> tuple[BlockSize, ...]:
    """Up to three stages of one type; without bottlenecks a stage has 0 columns of them."""
    ranges = ((1, 50), (1, 50), (1, 4), (0, 10), (0, 60))
    sizes = st.builds(BlockSize, *(st.integers(*ends) for ends in ranges), st.just(draw(st.sampled_from([2, 4, 8]))))
    return tuple(draw(st.lists(st.one_of(sizes, st.just(NO_BUFFER)), min_size=1, max_size=3)))


@generated
@given(networks())
def test_the_peak_is_not_raised_and_no_more_would_fit(stages):
    counts = bottlenecks_for_free(stages)
    assert all(0 <= count <= stage.num_layers for stage, count in zip(stages, counts, strict=True))
    limit = peak(stages, (0,) * len(stages))
    assert peak(stages, counts) <= limit
    # Earlier blocks may keep more only if later ones keep less.
    better = product(*(range(count, stage.num_layers + 1) for stage, count in zip(stages, counts, strict=True)))
    assert all(peak(stages, other) > limit for other in better if other != counts)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # L=100, k=12, 64 images. Millions of numbers in buffers 14.2, 4.9 and 1.6, in bottlenecks 3.15, 0.79 and 0.20:
        # the peak is 2 * 14.2 + 2 * 3.15 = 34.6, and 14.2 + 4.9 + 11 * 0.79 + 4.9 + 2 * 0.79 = 34.2 stays below it.
        (16, (0, 11, 16)),
        # L=250: 15 of the second block leave room for all of the third, which would fit only in part after 17.
        (41, (0, 15, 41)),
        # A layer alone in its block needs no second bottleneck if it keeps its own.
        (1, (1, 1, 1)),
    ],
)
def test_later_blocks_of_a_network_for_small_images_keep_theirs(layers, expected):
    features, stages = 24, []
    for i in range(3):
        features += 12 * layers
        stages.append(BlockSize(64 * 1024 >> 2 * i, features, layers, 48, 0, 4))
        features //= 2
    assert bottlenecks_for_free(tuple(stages)) == expected


@pytest.mark.parametrize(
    ("num_masked", "itemsize", "expected"), [(0, 4, (2, 12)), (280, 4, (2, 10)), (280, 2, (2, 7)), (280, 8, (2, 12))]
)
def test_masks_of_later_blocks_leave_less_room_for_bottlenecks(num_masked, itemsize, expected):
    # The backward pass of the first block holds 2 * 100 * 100 numbers. That of the second one holds 100 * 100 of the
    # first, 2 * 25 * 40 of its own buffers, 2 * 25 * 20 of bottlenecks that pass: 7000 are left for masks of 25 * 280
    # bytes, which are 1750 numbers of 4 bytes, and for bottlenecks of 500 numbers each.
    first, second = (100, 100, 2, 0, 0, itemsize), (25, 40, 12, 20, num_masked, itemsize)
    assert bottlenecks_for_free((BlockSize(*first), BlockSize(*second))) == expected
