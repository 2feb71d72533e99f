"""A step of one block over a buffer has the results and gradients of the modules."""

import pytest
import torch
from torch import Tensor, nn

from models.buffer import rows as rows_module
from models.buffer.function import block_over_buffer
from models.features import DenseBlock
from tests.support.block_steps import (
    ENDINGS,
    IMAGES,
    KEPT,
    KINDS,
    SIDES,
    START,
    block_and_transition,
    call_modules,
    random_input,
    step,
)
from tests.support.network_pairs import DROPOUTS, DROPPING, FORMATS
from tests.support.tensor_measurements import largest_difference


@pytest.mark.parametrize("num_bottlenecks", [0, 1])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_gradients_agree_with_finite_differences(ending, frozen, num_bottlenecks):
    block, last = block_and_transition(2, ending, start=3, growth=2, bn_size=2, kept=2, dtype=torch.float64)
    if frozen:
        block.denselayer1.norm1.eval()
        block.denselayer2.norm2.eval()
        block.denselayer2.norm1.eps = 0.1
    assert_gradients_of(block, last, num_bottlenecks)


@pytest.mark.parametrize(("bn_size", "num_bottlenecks"), [(2, 0), (2, 1), (None, 0)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_gradients_of_all_that_drops_agree_with_finite_differences(bn_size, ending, num_bottlenecks):
    sizes = {"start": 3, "growth": 2, "bn_size": bn_size, "kept": 2}
    block, last = block_and_transition(2, ending, **sizes, **DROPPING, dtype=torch.float64)
    assert_gradients_of(block, last, num_bottlenecks, sides=(2, 2))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_plain_layers_agree_with_finite_differences(frozen):
    block, last = block_and_transition(2, start=3, growth=2, bn_size=None, kept=2, dtype=torch.float64)
    block.denselayer2.norm1.train(not frozen)
    assert_gradients_of(block, last, num_bottlenecks=0, sides=(2, 2))


def assert_gradients_of(
    block: DenseBlock, last: nn.Module, num_bottlenecks: int, sides: tuple[int, int] = (4, 2)
) -> None:
    maps = torch.randn(3, 3, *sides, dtype=torch.float64, requires_grad=True)
    parameters = (*block.parameters(), *last.parameters())

    def read(maps: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(0)
        return block_over_buffer(maps, block, last, num_bottlenecks=num_bottlenecks)

    assert torch.autograd.gradcheck(read, (maps, *parameters))


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("ending", ENDINGS)
@KINDS
def test_chunks_of_any_size_give_the_same_step(bn_size, ending, dropout, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    maps = random_input(dtype=torch.float64)
    config = DROPOUTS[dropout] | {"bn_size": bn_size, "dtype": maps.dtype}
    expected, actual = (
        step(read, maps, *block_and_transition(3, ending, **config)) for read in (call_modules, block_over_buffer)
    )
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("sides", [(2, 2), (3, 5), (7, 2), (5, 9)])
def test_a_transition_drops_an_odd_row_and_column(sides, dropout):
    maps = torch.randn(3, START, *sides, dtype=torch.float64)
    config = DROPOUTS[dropout] | {"dtype": maps.dtype}
    expected, actual = (
        step(read, maps, *block_and_transition(2, **config)) for read in (call_modules, block_over_buffer)
    )
    assert actual["result"].shape == (3, KEPT, sides[0] // 2, sides[1] // 2)
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_transition_keeps_the_memory_format(memory_format):
    maps = random_input().detach().contiguous(memory_format=memory_format)
    result = block_over_buffer(maps, *block_and_transition(2))
    assert result.is_contiguous(memory_format=memory_format)


def test_maps_that_are_a_slice_give_the_same_step():
    maps = torch.randn(IMAGES, 2 * START, *SIDES, dtype=torch.float64)[:, ::2]
    assert not maps.is_contiguous()
    expected, actual = (
        step(read, maps, *block_and_transition(2, dtype=maps.dtype)) for read in (call_modules, block_over_buffer)
    )
    assert largest_difference(actual, expected) < 1e-12


def test_the_maps_and_the_gradient_handed_over_are_left_alone():
    maps, (block, last) = random_input(), block_and_transition(2)
    result = block_over_buffer(maps, block, last)
    grad = torch.randn_like(result)
    before = [tensor.detach().clone() for tensor in (maps, grad)]
    result.backward(grad)
    assert torch.equal(maps, before[0])
    assert torch.equal(grad, before[1])


def test_a_gradient_that_is_expanded_is_as_good():
    block, last = block_and_transition(2, dtype=torch.float64)
    maps = random_input(dtype=torch.float64)
    block_over_buffer(maps, block, last).sum().backward()
    expected = maps.grad
    maps.grad = None
    call_modules(maps, block, last).sum().backward()
    torch.testing.assert_close(maps.grad, expected, rtol=1e-10, atol=1e-12)
