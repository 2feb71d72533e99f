"""The small layer that decides whether fused products can be trusted."""

from contextlib import nullcontext

import pytest
import torch

from models.buffer.device import as_on_gpu
from models.buffer.kernels import products_check
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS


def differences(dtype):
    with as_on_gpu((9, 0)) if DEVICE == "cpu" else nullcontext():
        results = products_check.results(torch.empty(0, dtype=dtype, device=DEVICE))
    return {name: float((actual.double() - expected).norm() / expected.norm()) for name, actual, expected in results}


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 1e-6 if DEVICE == "cpu" else 1e-3), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)],
)
def test_kernels_agree_with_pytorch(dtype, most):
    found = differences(dtype)
    assert len(found) == 8
    assert all(difference < most for difference in found.values()), found


def test_a_wrong_kernel_is_far_from_pytorch(monkeypatch):
    new_maps = products_check.new_maps

    def transposes_images(z, second, shape, plan, **settings):
        return new_maps(z, second, (shape[0], shape[2], shape[1]), plan, **settings)

    monkeypatch.setattr(products_check, "new_maps", transposes_images)
    assert differences(torch.float32)["new feature maps"] > 0.1
