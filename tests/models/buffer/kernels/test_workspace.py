"""Blocks that run by kernels."""

import pytest
import torch
from torch import nn

from models.buffer.function import block_over_buffer
from models.layers import DenseBlock
from tests.support.kernel_networks import LIBRARY, by_kernels
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS

STRIDES = {
    "one number for all": lambda: torch.ones(()).expand(2, 9),
    "one number for each image": lambda: torch.ones(2, 1).expand(2, 9),
    "columns far apart": lambda: torch.arange(18.0).view(9, 2).t(),
}


@pytest.mark.parametrize("grad", STRIDES.values(), ids=STRIDES)
def test_the_gradient_of_averages_may_have_any_strides(grad):
    torch.manual_seed(0)
    block = DenseBlock(1, num_input_features=6, growth_rate=3, bn_size=None, drop_rate=0).to(DEVICE)
    x, norm = torch.randn(2, 6, 3, 3, device=DEVICE, requires_grad=True), nn.BatchNorm2d(9).to(DEVICE)
    with by_kernels(LIBRARY):
        averages = block_over_buffer(x, block, norm)
        given = grad().to(DEVICE)
        of_given, of_contiguous = (
            torch.autograd.grad(averages, [x, norm.weight], like, retain_graph=True)
            for like in (given, given.clone(memory_format=torch.contiguous_format))
        )
    for one, other in zip(of_given, of_contiguous, strict=True):
        assert torch.equal(one, other)
