from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.buffer.operations import add_chunks, chunk_moments, join_moments, sums_of_products

generated = settings(deadline=None, derandomize=True, max_examples=60)


def random_rows(num_rows: int, num_columns: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 2, num_columns, dtype=torch.float64)
    rows = torch.randn(num_rows, num_columns, dtype=torch.float64, generator=generator) * spread + 3 * spread
    return rows.to(dtype)


def moments(rows: torch.Tensor, *cuts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute mean and variances of rows as a whole, or of chunks that begin at the given rows."""
    bounds = [0, *cuts, len(rows)]
    mean, unbiased, invstd = join_moments([chunk_moments(rows[i:j]) for i, j in pairwise(bounds)], eps=0)
    return mean, invstd**-2, unbiased


# 1 to 40 columns fill cache lines in all ways; rows are a multiple of those that are joined, or are not.
sizes = st.tuples(st.one_of(st.integers(2, 50), st.integers(1, 20).map(lambda n: 16 * n)), st.integers(1, 40))


@generated
@given(sizes)
def test_moments_are_mean_and_variances(size):
    rows = random_rows(*size)
    mean, variance, unbiased = moments(rows)
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, rows.var(0, correction=0), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(unbiased, rows.var(0), rtol=1e-11, atol=1e-14)


@generated
@given(sizes, st.data())
def test_moments_of_chunks_are_those_of_the_whole(size, data):
    rows = random_rows(*size)
    cuts = data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=4))
    mean, variance, unbiased = moments(rows, *sorted(cuts))
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, rows.var(0, correction=0), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(unbiased, rows.var(0), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("num_columns", [12, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_of_fewer_bits_are_those_of_32(dtype, num_columns):
    rows = random_rows(4096, num_columns, dtype)
    mean, variance, unbiased = moments(rows)
    assert mean.dtype == variance.dtype == unbiased.dtype == torch.float32
    torch.testing.assert_close(mean.double(), rows.double().mean(0), rtol=3e-6, atol=0)
    torch.testing.assert_close(variance.double(), rows.double().var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_columns", [12, 16])
def test_a_mean_far_above_the_deviation_does_not_spoil_the_variance(num_columns):
    # A difference of mean square and squared mean would be off by 2.5e-3 at 100 deviations.
    rows = random_rows(4096, num_columns) + 300
    variance = moments(rows.float())[1].double()
    torch.testing.assert_close(variance, rows.float().double().var(0, correction=0), rtol=1e-4, atol=0)


@generated
@given(sizes)
def test_sums_are_those_of_products(size):
    rows, grad = random_rows(*size), random_rows(*size, seed=1)
    mean, invstd = random_rows(2, size[1], seed=2)
    total, product = sums_of_products(grad, rows, mean, invstd)
    torch.testing.assert_close(total, grad.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product, (grad * (rows - mean) * invstd).sum(0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("num_columns", [12, 16])
def test_sums_of_16_bits_add_up_in_32(num_columns):
    rows, grad = (random_rows(4096, num_columns, torch.bfloat16, seed) for seed in range(2))
    total, product = sums_of_products(grad, rows, torch.zeros(num_columns), torch.ones(num_columns))
    assert total.dtype == product.dtype == torch.float32
    torch.testing.assert_close(total.double(), grad.double().sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(product.double(), (grad.double() * rows.double()).sum(0), rtol=1e-5, atol=0)


def test_chunks_add_up_in_the_type_that_is_asked_for():
    # In bfloat16, 256 + 1 is 256.
    chunks = [(torch.full((3,), 256.0, dtype=torch.bfloat16), torch.ones(2))] + 2 * [(torch.ones(3), torch.ones(2))]
    first, second = add_chunks(chunks, torch.float32)
    assert first.tolist() == [258, 258, 258]
    assert second.tolist() == [3, 3]


@pytest.mark.parametrize("num_columns", [12, 16, 48])
def test_rounding_grows_little_with_the_number_of_rows(num_columns):
    # Added up one after the other, 65,536 numbers of 32 bits would be off by 1e-4 deviations.
    rows = (random_rows(65_536, num_columns) + 10).float()
    (mean, variance, _), exact = moments(rows), rows.double()
    deviation = exact.std(0)
    assert ((mean.double() - exact.mean(0)).abs() / deviation).max() < 2e-5
    torch.testing.assert_close(variance.double(), exact.var(0, correction=0), rtol=5e-6, atol=0)
