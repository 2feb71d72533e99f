"""Mean and standard deviation of several runs, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.spread import Spread, in_percent, percent

PUBLISHED = [0.0466, 0.0461, 0.0481]  # test errors of three runs of DenseNet-BC on C10+


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_mean_and_deviation_are_numpy_s(values):
    spread = Spread.of(values)
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-300)
    assert spread.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-16)


def test_a_small_spread_around_a_large_mean_keeps_its_digits():
    values = [0.5, 0.5 + 2**-50, 0.5 + 2**-49]
    assert Spread.of(values).deviation == pytest.approx(2**-50, rel=1e-12)


def test_errors_are_written_as_in_papers():
    assert in_percent(Spread.of(PUBLISHED)) == "4.69 ± 0.10, n = 3"
    assert percent(Spread.of(PUBLISHED)) == "4.69 ± 0.10"


def test_one_run_has_no_deviation():
    assert Spread.of([0.0451]) == Spread(0.0451, None, 1)
    assert in_percent(Spread.of([0.0451])) == "4.51, n = 1"
