"""Kernels of the forward pass, against float64."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models.buffer.dropout import NO_DROPOUT, Dropout
from models.buffer.kernels.forward import Moments, activate, activate_and_average, activate_and_pool
from tests.support.kernel_rows import (
    DTYPES,
    EPS,
    FEW,
    PROGRAMS,
    SEEDS,
    SHAPES,
    as_images,
    as_moments,
    as_rows,
    assert_rounded,
    batch_norm_of,
    exact,
    features,
    in_buffer,
    numbers,
    programs,
    relative_error,
)
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS


def chunks(num_rows, cuts):
    """Slices of all rows, cut at some of them."""
    places = sorted({0, num_rows, *(cut % num_rows for cut in cuts)})
    return [slice(start, stop) for start, stop in pairwise(places)]


@FEW
@given(SEEDS, st.integers(1, 150), st.integers(1, 90), DTYPES, st.sampled_from([0, 1, 16]), PROGRAMS, st.booleans())
def test_norm_and_relu(seed, num_rows, c, dtype, padding, num_programs, relu):
    torch.manual_seed(seed)
    x = features(num_rows, c, dtype)
    norm = batch_norm_of(x)
    mean, invstd, weight, bias = (vector.double() for vector in norm.vectors)
    expected = exact(x, norm) if relu else (x.double() - mean) * (weight * invstd) + bias
    out = numbers(num_rows, c + padding, dtype=dtype)
    with programs(num_programs):
        assert activate(x, norm, out, relu=relu) is out
    assert_rounded(out[:, :c], expected)
    assert not out[:, c:].any()


@FEW
@given(SEEDS, SHAPES, st.integers(1, 70), DTYPES, PROGRAMS)
def test_norm_relu_and_pooling(seed, shape, c, dtype, num_programs):
    torch.manual_seed(seed)
    n, height, width = shape
    x = features(n * height * width, c, dtype)
    norm = batch_norm_of(x)
    out = numbers(n * (height // 2) * (width // 2), c + 3, dtype=dtype)
    with programs(num_programs):
        activate_and_pool(x, norm, shape, out)
    assert_rounded(out[:, :c], as_rows(F.avg_pool2d(as_images(exact(x, norm), shape), 2)))
    assert not out[:, c:].any()


@FEW
@given(SEEDS, SHAPES, st.integers(1, 70), DTYPES)
def test_norm_relu_and_average(seed, shape, c, dtype):
    torch.manual_seed(seed)
    x = features(shape[0] * shape[1] * shape[2], c, dtype)
    norm = batch_norm_of(x)
    assert_rounded(activate_and_average(x, norm, shape), as_images(exact(x, norm), shape).mean((2, 3)))


def test_average_of_more_pixels_than_a_tile_has():
    shape, c = (2, 19, 21), 5  # 399 pixels, tiles of 128
    x = features(2 * 19 * 21, c, torch.float32)
    norm = batch_norm_of(x)
    assert_rounded(activate_and_average(x, norm, shape), as_images(exact(x, norm), shape).mean((2, 3)))


def test_nan_is_passed_on_as_by_relu():
    x = features(4, 3, torch.float32)
    norm = batch_norm_of(x)
    x[3, 1] = float("nan")
    out = torch.zeros(4, 3, device=DEVICE)
    assert activate(x, norm, out).isnan().nonzero().tolist() == [[3, 1]]
    assert activate_and_pool(x, norm, (1, 2, 2), out[:1]).isnan().nonzero().tolist() == [[0, 1]]
    assert activate_and_average(x, norm, (2, 1, 2)).isnan().nonzero().tolist() == [[1, 1]]


@FEW
@given(SEEDS, st.integers(2, 200), st.integers(1, 70), DTYPES, st.lists(st.integers(1, 199), max_size=2), PROGRAMS)
def test_moments_of_chunks(seed, num_rows, c, dtype, cuts, num_programs):
    torch.manual_seed(seed)
    x = features(num_rows, c, dtype)
    moments = Moments()
    with programs(num_programs):
        for chunk in chunks(num_rows, cuts):
            moments.add(x[chunk])
        mean, variance, unbiased = as_moments(moments.result(EPS))
    exactly = x.double()
    assert_rounded(mean, exactly.mean(0))
    assert_rounded(variance, exactly.var(0, correction=0))
    assert_rounded(unbiased, exactly.var(0))


@FEW
@given(SEEDS, st.integers(2, 99), st.integers(1, 40), DTYPES, DTYPES, st.booleans(), st.booleans())
def test_moments_are_of_what_is_stored_after_dropout(seed, num_rows, c, dtype, stored_dtype, drops, copies):
    torch.manual_seed(seed)
    x = in_buffer(numbers(num_rows, c, dtype=dtype))
    before = x.clone()
    mask = torch.rand(num_rows, c, device=DEVICE) < 0.7
    buffer = numbers(num_rows, c + 20, dtype=stored_dtype)
    others = buffer.clone()
    out = buffer[:, 7 : 7 + c]
    moments, half = Moments(), num_rows // 2
    for chunk in (slice(half), slice(half, None)) if half else (slice(None),):
        moments.add(x[chunk], Dropout(0.7, mask[chunk]) if drops else NO_DROPOUT, out=out[chunk] if copies else None)
    mean, variance, _ = as_moments(moments.result(EPS))
    dropped = torch.where(mask, before.double() / 0.7, 0) if drops else before.double()
    stored = out if copies else x
    assert_rounded(stored, dropped)
    assert_rounded(mean, stored.double().mean(0))
    assert_rounded(variance, stored.double().var(0, correction=0))
    if copies:
        assert torch.equal(x, before)
    out.copy_(others[:, 7 : 7 + c])
    assert torch.equal(buffer, others)


@pytest.mark.parametrize("num_programs", [1, 8])
def test_moments_of_large_means_have_all_digits(num_programs):
    torch.manual_seed(0)
    x = features(3000, 24, torch.float32, mean=100.0)
    moments = Moments()
    with programs(num_programs):
        for chunk in (slice(700), slice(700, None)):
            moments.add(x[chunk])
        mean, variance, _ = as_moments(moments.result(EPS))
    # Of 24 bits; E[x^2] - E[x]^2 would leave 11 of the variance.
    assert relative_error(mean, x.double().mean(0)) < 2**-24
    assert relative_error(variance, x.double().var(0, correction=0)) < 2**-22


def test_norms_of_large_means_are_as_good_as_those_of_pytorch():
    torch.manual_seed(0)
    x = features(500, 24, torch.float32, mean=100.0)
    norm = batch_norm_of(x)
    theirs = F.relu(F.batch_norm(x, norm.mean, norm.invstd**-2 - 1e-5, norm.weight, norm.bias))
    truth = exact(x, norm)
    mine = activate(x, norm, torch.empty(500, 24, device=DEVICE))
    assert relative_error(mine, truth) < 1.5 * relative_error(theirs, truth) + 2e-8
