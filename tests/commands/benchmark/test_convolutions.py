"""The convolutions that are timed alone are those of the naive network's step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from commands.benchmark.convolutions import ConvolutionsAlone
from tests.support.benchmark_cases import small, variants

CASES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "plain": {"network": "densenet"},
    "large images": {"image_size": 72, "batch_size": 2},
}


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    of_calls = counter.get_flop_counts()["Global"]
    return {call: count for call, count in of_calls.items() if "convolution" in str(call)}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_they_compute_what_a_step_of_naive_computes(changes):
    naive, case = variants()[0], small(depth=16, **changes)
    alone = ConvolutionsAlone(naive, case)
    assert flops(alone) == flops(naive.step(case))
    assert {one.x.dtype for one in alone.convolutions} == {
        torch.bfloat16 if case.precision == "bf16" else torch.float32
    }


@pytest.mark.parametrize("index", [0, 1])
def test_operands_are_dense_in_the_memory_format_of_the_network(index):
    naive = variants()[index]
    memory_format = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[naive.memory_format]
    for one in ConvolutionsAlone(naive, small()).convolutions:
        for tensor in (one.x, one.weight, one.grad):
            assert tensor.is_contiguous(memory_format=memory_format)
