"""Partial results are joined as by a sum in float64."""

import pytest
import torch

from models.buffer.kernels.sums import BLOCK, finish_moments, finish_reader, finish_sums
from models.buffer.norms import ChannelNorm
from tests.support.kernel_rows import EPS, as_moments, assert_rounded, numbers, relative_error
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS
NUM_PARTS = [1, 7, BLOCK["BLOCK_P"], 2 * BLOCK["BLOCK_P"] + 3]


def wider(parts):
    """The same parts, with other numbers after each of them."""
    padded = torch.cat([parts, torch.full_like(parts, float("nan"))], 1)
    return padded[:, : parts.shape[1]]


@pytest.mark.parametrize("num_parts", NUM_PARTS)
@pytest.mark.parametrize("c", [1, 21, 48])
def test_moments_of_parts_of_any_lengths(num_parts, c):
    torch.manual_seed(num_parts)
    count = torch.arange(num_parts, device=DEVICE).remainder(5)[:, None].expand(-1, c) + 2.0
    parts = torch.stack([100 + numbers(num_parts, c), numbers(num_parts, c).square() * count, count], 1)
    num_rows = int(count[:, 0].sum())
    mean, variance, unbiased = as_moments(finish_moments(wider(parts), num_rows, EPS))
    means, m2s, counts = parts.double().unbind(1)
    exactly = (means * counts).sum(0) / num_rows
    m2 = (m2s + counts * (means - exactly) ** 2).sum(0)
    assert_rounded(mean, exactly)
    assert relative_error(variance, m2 / num_rows) < 1e-6
    assert relative_error(unbiased, m2 / (num_rows - 1)) < 1e-6


@pytest.mark.parametrize("num_parts", NUM_PARTS)
def test_sums_of_parts_of_any_shape(num_parts):
    parts = numbers(num_parts, 3, 5, 7)
    assert_rounded(finish_sums(wider(parts)), parts.double().sum(0), scale=parts.double().abs().sum(0))


@pytest.mark.parametrize("num_parts", NUM_PARTS)
@pytest.mark.parametrize("collects", [False, True])
def test_sums_of_a_reader(num_parts, collects):
    c = 21
    parts = numbers(num_parts, 2, c)
    norm = ChannelNorm(numbers(c), torch.rand(c, device=DEVICE), numbers(c), numbers(c))
    a, d = numbers(c + 9), numbers(c + 9)
    before = a.clone(), d.clone()
    total, product = finish_reader(wider(parts), norm, (a, d) if collects else None)
    size = 10 * (1 + parts.double().abs().sum((0, 1)))
    invstd, weight = norm.invstd.double(), norm.weight.double()
    assert_rounded(total, parts[:, 0].double().sum(0), scale=size)
    assert_rounded(product, parts[:, 1].double().sum(0) * invstd, scale=size)
    added = weight * invstd * total.double(), weight * invstd**2 * product.double()
    for now, then, more in zip((a, d), before, added, strict=True):
        assert_rounded(now[:c], then[:c].double() + more * collects, scale=size)
        assert torch.equal(now[c:], then[c:])
