import re

import pytest
import torch

from tests.commands.benchmark.predict_speed import KINDS, make_files, measure, our_batches, plain_batches


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_make_the_same_batches(kind, tmp_path):
    paths = make_files(tmp_path, kind, 300)
    for ours, plain in zip(our_batches(paths), plain_batches(paths), strict=True):
        assert ours.shape == plain.shape
        steps = (ours - plain).abs() * 0.25 * 255  # its standard deviations are about a quarter
        assert steps.mean() < 0.5
        assert steps.max() < 8
        if kind.startswith("PNG"):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_the_table_has_both_ways_and_their_ratio_for_each_kind():
    header, *rows, machine = measure(number=20, rounds=2, network=False).splitlines()
    assert header == "20 files of each kind, batches of 256: files/s, median of 2 rounds (min - max)"
    assert [row.strip().partition("  ")[0] for row in rows] == [
        name for kind in KINDS for name in (f"{kind}, read", "data.images", "plain loop", "ratio within a round")
    ]
    for row in rows:
        if row.startswith("  "):
            median, low, high = (float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", row))
            assert 0 < low <= median <= high
    assert re.search(r" CPUs, \d+ threads of torch; Python 3\.\S+, torch \S+, torchvision \S+, Pillow \S+$", machine)
