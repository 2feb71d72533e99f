"""Rounding in a block: channels that are hard for fewer bits, sums under autocast, repeatable bits."""

import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from models.buffer import rows as rows_module
from models.buffer.function import block_over_buffer
from models.features import DenseBlock
from tests.support.block_steps import ENDINGS, KINDS, Read, block_and_transition, call_modules, random_input, step
from tests.support.network_pairs import BF16, DROPOUTS, DROPPING
from tests.support.tensor_measurements import largest_difference, unequal


def errors(read: Read, maps: Tensor, ending: str, truth: dict[str, Tensor]) -> dict[str, float]:
    """Distance from the truth, relative to its length: of result and of all gradients together, and of variances."""
    actual = step(read, maps, *block_and_transition(3, ending))
    kinds = {"result": "result", "gradients": "gradient of ", "variances": "running_var"}
    result = {}
    for kind, part in kinds.items():
        left, right = (torch.cat([t.flatten() for n, t in r.items() if part in n]) for r in (actual, truth))
        result[kind] = ((left.double() - right).norm() / right.norm()).item()
    return result


@pytest.mark.parametrize("ratio", [100, 1000])
@pytest.mark.parametrize("ending", ENDINGS)
def test_errors_for_means_far_above_the_deviation_are_those_of_modules(ending, ratio):
    maps = (random_input().detach() + ratio).float()
    truth = step(call_modules, maps.double(), *block_and_transition(3, ending, dtype=torch.float64))
    expected, actual = (errors(read, maps, ending, truth) for read in (call_modules, block_over_buffer))
    assert {kind: error for kind, error in actual.items() if error > 1.5 * expected[kind] + 1e-6} == {}


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
@pytest.mark.parametrize("ending", ENDINGS)
def test_constant_channels_are_the_same(ending, value):
    maps = random_input(dtype=torch.float64).detach().clone()
    maps[:, 1] = value
    expected, actual = (
        step(read, maps, *block_and_transition(3, ending, dtype=maps.dtype))
        for read in (call_modules, block_over_buffer)
    )
    assert all(tensor.isfinite().all() for tensor in actual.values())
    assert largest_difference(actual, expected) < 1e-10


def test_parameters_of_zero_are_the_same():
    def with_zeros() -> tuple[DenseBlock, nn.Module]:
        block, last = block_and_transition(3, dtype=torch.float64)
        for norm in (block.denselayer1.norm1, block.denselayer2.norm2, last.norm):
            nn.init.zeros_(norm.weight)
        return block, last

    maps = random_input(dtype=torch.float64)
    expected, actual = (step(read, maps, *with_zeros()) for read in (call_modules, block_over_buffer))
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("ending", ENDINGS)
@KINDS
def test_gradients_of_norms_are_sums_of_32_bits_under_autocast(bn_size, ending):
    actual = step(block_over_buffer, random_input(), *block_and_transition(3, ending, bn_size=bn_size), of_forward=BF16)
    of_norms = {name: actual[name] for name in actual if re.match("gradient of (?!maps)(?!.*conv)", name)}
    assert len(of_norms) == 2 * ((2 if bn_size else 1) * 3 + 1)
    assert [name for name, tensor in of_norms.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


@pytest.mark.parametrize("dropout", DROPOUTS)
@KINDS
def test_gradients_of_convolutions_add_up_in_32_bits_under_autocast(bn_size, dropout, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    actual = step(
        block_over_buffer,
        random_input(),
        *block_and_transition(3, bn_size=bn_size, **DROPOUTS[dropout]),
        of_forward=BF16,
    )
    of_convolutions = {name: actual[name] for name in actual if re.match("gradient of .*conv", name)}
    assert len(of_convolutions) == (2 if bn_size else 1) * 3 + 1
    assert [name for name, tensor in of_convolutions.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_bottlenecks_that_are_kept_change_no_bit(dropout, precision):
    reads = (partial(block_over_buffer, num_bottlenecks=count) for count in (0, 2, 3))
    config = DROPOUTS[dropout]
    none, some, all_ = (
        step(read, random_input(), *block_and_transition(3, **config), of_forward=precision) for read in reads
    )
    assert unequal(none, some) == unequal(none, all_) == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@KINDS
def test_two_steps_give_the_same_bits(bn_size, precision):
    config = DROPPING | {"bn_size": bn_size}
    first, second = (
        step(block_over_buffer, random_input(), *block_and_transition(3, **config), of_forward=precision)
        for _ in range(2)
    )
    assert unequal(first, second) == []


@pytest.mark.parametrize("of_forward", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("ending", ENDINGS)
@KINDS
def test_autocast_around_the_backward_pass_changes_no_bit(bn_size, ending, of_forward):
    config = DROPPING | {"bn_size": bn_size}
    outside, inside = (
        step(
            block_over_buffer,
            random_input(),
            *block_and_transition(3, ending, **config),
            of_forward=of_forward,
            of_backward=of_backward,
        )
        for of_backward in (nullcontext, BF16)
    )
    assert unequal(outside, inside) == []
