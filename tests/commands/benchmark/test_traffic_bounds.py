"""Bytes, launches and memory of a step with our kernels: DenseNet-BC with L=100 and k=12, batch 64 of 32x32."""

from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch

from commands.benchmark.count import training_bytes
from commands.benchmark.traffic import trace_step
from tests.support.benchmark_cases import small, variant

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no triton")

# Compute capabilities: one without fused products, and one with them.
LIBRARY, FUSED = (7, 5), (9, 0)
LEAST_CHUNK = "models.buffer.kernels.workspace.LEAST_CHUNK_BYTES"


def case(precision):
    return small(depth=100, growth_rate=12, batch_size=64, image_size=32, precision=precision)


def peak(name, precision, capability):
    if name == "naive" and precision == "tf32":
        precision = "fp32"  # which takes the same memory and has been counted
    return training_bytes(variant(name), case(precision), capability).peak


@pytest.fixture(autouse=True)
def compute_in(precision):
    """Products of float32 are computed as a test says, and afterwards as before."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "gigabytes"), [("fp32", 11), ("tf32", 11), ("bf16", 5.5)])
def test_fused_products_halve_the_traffic_and_the_launches_in_a_twelfth_of_the_memory(precision, gigabytes):
    trace = trace_step(variant("buffer"), case(precision), FUSED)
    assert trace.bytes_moved <= gigabytes * 1e9
    assert trace.num_launches <= 650
    assert 12 * peak("buffer", precision, FUSED) <= peak("naive", precision, FUSED)


@pytest.mark.parametrize(("precision", "gigabytes", "launches"), [("fp32", 15.5, 1000), ("bf16", 7.8, 1400)])
def test_kernels_beside_a_library_move_two_thirds_if_all_rows_are_one_chunk(precision, gigabytes, launches):
    with patch(LEAST_CHUNK, 2**60):
        trace = trace_step(variant("buffer"), case(precision), LIBRARY)
    assert trace.bytes_moved <= gigabytes * 1e9
    assert trace.num_launches <= launches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_beside_a_library_need_a_twelfth_of_the_memory(precision):
    assert 12 * peak("buffer", precision, LIBRARY) <= peak("naive", precision, LIBRARY)
