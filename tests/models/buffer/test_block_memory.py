"""The bytes that a block keeps for the backward pass, and the peak of a step, are those of closed forms."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from models.buffer import rows as rows_module
from models.buffer.function import block_over_buffer
from models.features import DenseBlock
from tests.support.block_steps import (
    BOTTLENECK,
    ENDINGS,
    GROWTH,
    KEPT,
    KINDS,
    LAYERS,
    PEAK_IMAGES,
    ROWS,
    SIDES,
    START,
    Read,
    block_and_transition,
    call_modules,
    random_input,
)
from tests.support.network_pairs import DROPOUTS, DROPPING
from tests.support.tensor_measurements import LiveStorages, bytes_saved_for_backward, second_differences


def kept_bytes_in_closed_form(num_layers: int, num_bottlenecks: int) -> int:
    # The buffer; mean, variance and inverse deviation of each of its channels, mean and inverse deviation of those of
    # all bottlenecks; and bottlenecks that are kept.
    of_bottlenecks = 2 * 4 * num_layers * BOTTLENECK + 4 * num_bottlenecks * ROWS * BOTTLENECK
    return kept_bytes_without_bottlenecks(num_layers) + of_bottlenecks


def kept_bytes_without_bottlenecks(num_layers: int) -> int:
    channels = START + num_layers * GROWTH
    return 4 * ROWS * channels + 3 * 4 * channels


def bytes_of_masks(num_layers: int, dropout: str, bn_size: int | None, ending: str) -> int:
    # A byte for each value after the convolutions that dropout follows.
    inner = BOTTLENECK * num_layers if bn_size else 0
    of_transition = KEPT if ending == "transition" else 0
    columns = {"nothing": 0, "layers": GROWTH * num_layers}
    columns["convolutions"] = columns["layers"] + inner + of_transition
    return ROWS * columns[dropout]


@pytest.mark.parametrize("num_bottlenecks", [0, 1, 4])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward(num_layers, ending, dropout, num_bottlenecks):
    block, last = block_and_transition(num_layers, ending, **DROPOUTS[dropout])
    expected = kept_bytes_in_closed_form(num_layers, num_bottlenecks) + bytes_of_masks(num_layers, dropout, 4, ending)
    assert_kept_bytes(block, last, expected, num_bottlenecks)


@pytest.mark.parametrize("num_bottlenecks", [0, 4])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward_without_bottlenecks(num_layers, ending, dropout, num_bottlenecks):
    block, last = block_and_transition(num_layers, ending, bn_size=None, **DROPOUTS[dropout])
    expected = kept_bytes_without_bottlenecks(num_layers) + bytes_of_masks(num_layers, dropout, None, ending)
    assert_kept_bytes(block, last, expected, num_bottlenecks)


def assert_kept_bytes(block: DenseBlock, last: nn.Module, expected: int, num_bottlenecks: int) -> None:
    maps = random_input()
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    read = partial(block_over_buffer, maps, block, last, num_bottlenecks=num_bottlenecks)
    assert bytes_saved_for_backward(read, without=given) == expected
    with LiveStorages() as storages:
        result = read()
    assert storages.live_bytes(without=[result, *given]) == expected


@pytest.mark.parametrize("ending", ENDINGS)
@KINDS
def test_nothing_is_alive_after_the_backward_pass(bn_size, ending):
    maps, (block, last) = random_input(), block_and_transition(3, ending, bn_size=bn_size, **DROPPING)
    with LiveStorages() as storages:
        result = block_over_buffer(maps, block, last)
        result.sum().backward()
    gradients = [tensor.grad for tensor in (maps, *block.parameters(), *last.parameters())]
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    assert storages.live_bytes(without=[result, *given, *gradients]) == 0


@KINDS
def test_only_buffers_are_as_large_as_the_convolution_of_a_dropping_transition(bn_size, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    num_layers, kept = 8, 60
    assert BOTTLENECK < kept < START + num_layers * GROWTH
    block, last = block_and_transition(num_layers, bn_size=bn_size, kept=kept, **DROPPING)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    rows = PEAK_IMAGES * SIDES[0] * SIDES[1]

    def is_large(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.untyped_storage().nbytes() >= 4 * rows * kept

    a_buffer = 4 * rows * (START + num_layers * GROWTH)
    with LiveStorages(counts=is_large) as storages:
        result = block_over_buffer(maps, block, last)
    assert storages.peak_bytes == a_buffer
    with storages:
        result.sum().backward()
    assert storages.peak_bytes == 2 * a_buffer


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_only_buffers_are_larger_than_a_chunk_without_bottlenecks(ending, dropout, monkeypatch):
    num_layers, chunk_bytes = 8, 30_000
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    block, last = block_and_transition(num_layers, ending, bn_size=None, **DROPOUTS[dropout])
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    with LiveStorages(counts=lambda tensor: tensor.untyped_storage().nbytes() > chunk_bytes) as storages:
        block_over_buffer(maps, block, last).sum().backward()
    assert storages.peak_bytes == 2 * 4 * PEAK_IMAGES * SIDES[0] * SIDES[1] * (START + num_layers * GROWTH)


def test_kept_bytes_grow_linearly_with_the_layers():
    kept = []
    for num_layers in LAYERS:
        maps, (block, last) = random_input(), block_and_transition(num_layers)
        with LiveStorages() as storages:
            result = block_over_buffer(maps, block, last)
        given = [*block.buffers(), *last.buffers(), *block.parameters(), *last.parameters()]
        kept.append(storages.live_bytes(without=[result, *given]))
    assert kept[0] > 0
    assert second_differences(kept) == [0, 0]


def peak_bytes(read: Read, num_layers: int) -> int:
    """Measure the peak of what is alive in forward and backward, besides gradients of the block's weights."""
    block, last = block_and_transition(num_layers)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    weights = {tuple(parameter.shape) for parameter in block.parameters()}
    with LiveStorages(counts=lambda tensor: tuple(tensor.shape) not in weights) as storages:
        read(maps, block, last).sum().backward()
    return storages.peak_bytes


def test_peak_of_a_training_step_grows_by_two_buffers_and_a_few_chunks(monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    peaks = [peak_bytes(block_over_buffer, m) for m in (8, 16, 24, 32)]
    an_image = 4 * SIDES[0] * SIDES[1] * 8 * GROWTH
    most = 2 * PEAK_IMAGES * an_image + 8 * an_image
    assert all(after - before <= most for before, after in pairwise(peaks))
    assert peaks[-1] < peak_bytes(call_modules, 32) / 10


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_forward_pass_has_one_bottleneck_and_a_few_images_beside_what_it_keeps(ending, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    block, last = block_and_transition(24, ending)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    with LiveStorages() as storages:
        result = block_over_buffer(maps, block, last)
    of_pixels = 4 * SIDES[0] * SIDES[1]
    an_image, a_bottleneck = of_pixels * (START + 24 * GROWTH), of_pixels * PEAK_IMAGES * BOTTLENECK
    others = 3 * result.nbytes + 4 * an_image
    assert storages.peak_bytes <= storages.live_bytes(without=[result]) + a_bottleneck + others


def test_a_small_backward_pass_has_the_gradient_of_a_bottleneck_as_a_whole_but_not_the_bottleneck(monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    peak, small_peak = (peak_bytes(partial(block_over_buffer, is_small=small), 24) for small in (False, True))
    of_an_image = 4 * SIDES[0] * SIDES[1] * BOTTLENECK
    assert (PEAK_IMAGES - 3) * of_an_image <= peak - small_peak <= PEAK_IMAGES * of_an_image
