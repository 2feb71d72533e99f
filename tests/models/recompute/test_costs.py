"""The memory and the operations of a block, plain and with recomputation, are those of closed forms."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.features import DenseBlock
from tests.support.network_pairs import DROPPING, naive_and_checkpoint
from tests.support.tensor_measurements import (
    LiveStorages,
    OperationCounts,
    bytes_saved_for_backward,
    random_images,
    second_differences,
)

# Letters: m layers, k = GROWTH new channels each, C_i = START + i * k channels read by layer i = 0 ... m - 1, B = 4 * k
# channels of its bottleneck, MAP bytes of one channel of all images.
START, GROWTH, BOTTLENECK = 6, 8, 32
IMAGES, SIDES = 2, (5, 4)
MAP = 4 * IMAGES * SIDES[0] * SIDES[1]
STATISTICS = 4 + 4  # Each norm keeps mean and inverse standard deviation of a channel in float32.
LAYERS = (4, 8, 12, 16)


def block_and_input(num_layers: int, efficient: bool, bn_size: int | None = 4) -> tuple[DenseBlock, Tensor]:
    torch.manual_seed(0)
    block = DenseBlock(num_layers, START, GROWTH, bn_size, drop_rate=0, strategy="checkpoint" if efficient else "naive")
    return block, torch.randn(IMAGES, START, *SIDES, requires_grad=True)


def kept_bytes(num_layers: int, efficient: bool, bn_size: int | None = 4) -> int:
    """Sum what is alive between forward and backward, besides the block's input, output, parameters and buffers.

    No garbage is collected before: what a reference cycle holds is in the way of the next layers, too.
    """
    block, x = block_and_input(num_layers, efficient, bn_size)
    with LiveStorages() as storages:
        y = block(x)
    return storages.live_bytes(without=[x, y, *block.parameters(), *block.buffers()])


def kept_bytes_after_the_bottleneck() -> int:
    # norm2 keeps its input and its statistics; conv2 keeps its input, which the ReLU made in place of norm2's output.
    return 2 * BOTTLENECK * MAP + BOTTLENECK * STATISTICS


@pytest.mark.parametrize("num_layers", LAYERS)
def test_naive_bytes_kept_for_backward(num_layers):
    # norm1 keeps the concatenation and its statistics; conv1 keeps the normalised copy, rectified in place. The new
    # maps themselves are dropped, because each concatenation is a copy.
    channels = [START + i * GROWTH for i in range(num_layers)]
    bottlenecks = sum(2 * c * MAP + c * STATISTICS for c in channels)
    assert kept_bytes(num_layers, efficient=False) == bottlenecks + num_layers * kept_bytes_after_the_bottleneck()


@pytest.mark.parametrize("num_layers", LAYERS)
def test_efficient_bytes_kept_for_backward(num_layers):
    # Only the new feature maps are kept of the inputs of all bottlenecks, once each. No layer reads those of the last.
    new_maps = (num_layers - 1) * GROWTH * MAP
    assert kept_bytes(num_layers, efficient=True) == new_maps + num_layers * kept_bytes_after_the_bottleneck()


@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward_without_bottlenecks(num_layers):
    # Naively norm1 keeps the concatenation and its statistics, and conv1 the normalised copy. Otherwise the new maps
    # are kept, once each, and nothing else.
    channels = [START + i * GROWTH for i in range(num_layers)]
    assert kept_bytes(num_layers, efficient=False, bn_size=None) == sum(2 * c * MAP + c * STATISTICS for c in channels)
    assert kept_bytes(num_layers, efficient=True, bn_size=None) == (num_layers - 1) * GROWTH * MAP


def test_bytes_saved_by_autograd_are_those_alive_in_naive_mode():
    block, x = block_and_input(6, efficient=False)
    saved = bytes_saved_for_backward(lambda: block(x), without=[x, *block.parameters(), *block.buffers()])
    assert saved == kept_bytes(6, efficient=False)


def test_kept_bytes_grow_linearly_when_efficient_and_quadratically_when_naive():
    efficient, naive = ([kept_bytes(m, mode) for m in LAYERS] for mode in (True, False))
    assert second_differences(efficient) == [0, 0]
    # The sum of all C_i has the quadratic term k m^2 / 2.
    step = LAYERS[1] - LAYERS[0]
    assert second_differences(naive) == 2 * [step**2 * GROWTH * (2 * MAP + STATISTICS)]


def peak_bytes_of_maps(num_layers: int, efficient: bool) -> int:
    """Measure the peak of live maps in forward and backward. Gradients of weights are no maps and are left out."""
    block, x = block_and_input(num_layers, efficient)
    with LiveStorages(counts=lambda tensor: tensor.dim() == 4 and tensor.shape[2:] == SIDES) as storages:
        block(x).sum().backward()
    return storages.peak_bytes


def test_peak_of_a_training_step_grows_linearly_when_efficient():
    # A further layer adds what it keeps, and k channels to each tensor of C channels that is alive in the backward
    # pass of the last bottleneck; as only one bottleneck is recomputed at a time, these are no more than 8.
    most_per_layer = (2 * BOTTLENECK + GROWTH + 8 * GROWTH) * MAP
    efficient, naive = ([peak_bytes_of_maps(m, mode) for m in (8, 16, 24, 32)] for mode in (True, False))
    assert all(after - before <= 8 * most_per_layer for before, after in pairwise(efficient))
    assert naive[-1] - naive[-2] > 3 * 8 * most_per_layer
    assert efficient[-1] < naive[-1] / 3


def operations(num_layers: int, efficient: bool, bn_size: int | None = 4) -> dict[str, int]:
    block, x = block_and_input(num_layers, efficient, bn_size)
    with OperationCounts() as mode:
        block(x).sum().backward()
    return dict(mode.counts)


def test_no_convolution_runs_twice():
    m = 5
    naive, efficient = (operations(m, mode) for mode in (False, True))
    convolutions = {name: count for name, count in efficient.items() if name.startswith("convolution")}
    # conv1 is the last step of the bottleneck: the recomputation stops as soon as it has conv1's input.
    assert convolutions == {name: m for name in convolutions}
    assert convolutions.keys() == {
        "convolution 1x1",
        "convolution 3x3",
        "convolution_backward 1x1",
        "convolution_backward 3x3",
    }
    assert (naive["cat"], efficient["cat"]) == (m + 1, 2 * m + 1)
    assert (naive["native_batch_norm"], efficient["native_batch_norm"]) == (2 * m, 3 * m)
    assert (naive["relu_"], efficient["relu_"]) == (2 * m, 3 * m)


def test_no_convolution_runs_twice_without_bottlenecks():
    m = 5
    naive, efficient = (operations(m, mode, bn_size=None) for mode in (False, True))
    convolutions = {name: count for name, count in efficient.items() if name.startswith("convolution")}
    assert convolutions == {"convolution 3x3": m, "convolution_backward 3x3": m}
    assert (naive["cat"], efficient["cat"]) == (m + 1, 2 * m + 1)
    assert (naive["native_batch_norm"], efficient["native_batch_norm"]) == (m, 2 * m)


@pytest.mark.parametrize("efficient", [False, True])
def test_dropout_draws_once(efficient):
    # After both convolutions of five layers and after that of the transition.
    network = naive_and_checkpoint(**DROPPING)[efficient]
    with OperationCounts() as mode:
        network(random_images()).sum().backward()
    assert mode.counts["bernoulli_"] == 2 * 5 + 1


@pytest.mark.parametrize("efficient", [False, True])
def test_floating_point_operations_are_those_of_the_closed_form(efficient):
    m = 5
    block, x = block_and_input(m, efficient)
    with FlopCounterMode(display=False) as counter:
        block(x).sum().backward()
    pixels = IMAGES * SIDES[0] * SIDES[1]
    per_pixel = sum((START + i * GROWTH) * BOTTLENECK + BOTTLENECK * 9 * GROWTH for i in range(m))
    # A multiplication and an addition count as two; forward, gradient of the input, gradient of the weight.
    assert counter.get_total_flops() == 3 * 2 * pixels * per_pixel
