"""Rows, norms and exact results for tests of the kernels."""

from unittest.mock import patch

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st

from models.buffer.kernels import tiles
from models.buffer.norms import ChannelNorm

from .triton_interpreter import DEVICE

FEW = settings(max_examples=12, deadline=None)

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SEEDS = st.integers(0, 2**16)
PROGRAMS = st.sampled_from([1, 3, tiles.PROGRAMS])
SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))  # N, H, W


def numbers(*size, dtype=torch.float32):
    return torch.randn(size).to(DEVICE, dtype)


def programs(number):
    """Launch so many programs for each pass over rows: with 1, it loops over all tiles."""
    return patch.object(tiles, "PROGRAMS", number)


def in_buffer(values, *, pitch=None):
    """A copy of rows (R, c), as columns of a buffer whose other columns are NaN."""
    num_rows, num_columns = values.shape
    buffer = values.new_full((num_rows, pitch or -(-num_columns // 16) * 16), float("nan"))
    buffer[:, :num_columns] = values
    return buffer[:, :num_columns]


def features(num_rows, num_columns, dtype, *, mean=3.0):
    """Feature maps in a buffer, with this mean and standard deviations of about 1."""
    spread = 0.5 + torch.rand(num_columns, device=DEVICE)
    return in_buffer((mean + spread * numbers(num_rows, num_columns)).to(dtype))


EPS = 1e-5


def as_moments(statistics):
    """Mean, variance and unbiased variance, of statistics that were computed with EPS."""
    return statistics.mean, (statistics.invstd.double() ** -2 - EPS).float(), statistics.unbiased


def batch_norm_of(x, eps=EPS):
    """A norm with the statistics of rows, and random weights of either sign."""
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    return ChannelNorm(mean.float(), (variance + eps).rsqrt().float(), numbers(x.shape[1]), numbers(x.shape[1]))


def as_images(rows, shape):
    return rows.view(*shape, -1).permute(0, 3, 1, 2)


def as_rows(images):
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def exact(x, norm):
    """Norm and ReLU in float64."""
    mean, invstd, weight, bias = (vector.double() for vector in norm.vectors)
    return F.relu((x.double() - mean) * (weight * invstd) + bias)


def assert_rounded(actual, expected, *, scale=None):
    """Assert that results are the nearest numbers of their dtype, but for the rounding errors of float32.

    Args:
        actual: Results.
        expected: In float64.
        scale: The size of what was added up, if the results are differences; else their own size.
    """
    unit = torch.finfo(actual.dtype).eps / 2 if actual.dtype != torch.float32 else 0.0
    size = (expected if scale is None else scale).abs()
    allowed = 1.01 * unit * expected.abs() + 8 * torch.finfo(torch.float32).eps * (size + 1)
    if actual.dtype == torch.float16:
        allowed = allowed + torch.finfo(torch.float16).smallest_normal * unit
    assert ((actual.double() - expected).abs() <= allowed).all()


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()
