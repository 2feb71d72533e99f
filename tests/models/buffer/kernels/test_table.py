"""Which layers are computed by fused products."""

import pytest
import torch

from models.buffer.kernels import table


@pytest.fixture
def precision():
    """The setting of TF32, which tests may change."""
    setting = torch.backends.cudnn.conv
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


@pytest.mark.parametrize(
    ("capability", "b", "k", "is_fused"),
    [
        ((7, 5), 48, 12, False),
        ((8, 0), 48, 12, True),
        ((12, 0), 48, 12, True),
        ((9, 0), 64, 32, True),
        ((9, 0), 65, 12, False),
        ((9, 0), 64, 33, False),
        ((9, 0), 1, 1, True),
    ],
)
def test_narrow_layers_on_gpus_with_tensor_cores_are_fused(capability, b, k, is_fused):
    assert (table.plan(capability, torch.bfloat16, b, k) is not None) == is_fused


@pytest.mark.parametrize(("b", "k", "blocks"), [(1, 1, (16, 16)), (17, 16, (32, 16)), (48, 17, (64, 32))])
def test_tiles_hold_all_channels(b, k, blocks):
    plan = table.plan((8, 0), torch.float32, b, k)
    assert (plan.block_b, plan.block_k) == blocks


def test_float32_is_multiplied_as_cudnn_would(precision):
    precisions = {}
    for setting in ("tf32", "ieee"):
        precision.fp32_precision = setting
        precisions[setting] = table.plan((8, 0), torch.float32, 48, 12).precision
    assert precisions == {"tf32": "tf32", "ieee": "tf32x3"}


def test_the_old_setting_of_tf32_counts_too(precision):
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        assert table.plan((8, 0), torch.float32, 48, 12).precision == "tf32x3"
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_16_bits_do_not_depend_on_tf32(precision):
    precision.fp32_precision = "ieee"
    exact = table.plan((8, 0), torch.float16, 48, 12)
    precision.fp32_precision = "tf32"
    assert table.plan((8, 0), torch.float16, 48, 12) == exact
