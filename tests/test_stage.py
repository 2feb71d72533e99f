import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import rows as rows_module
from models.buffer import average
from models.densenet import DenseBlock, Transition
from models.stage import read_block
from tests.tensors import (
    LiveStorages,
    OperationCounts,
    bytes_saved_for_backward,
    largest_difference,
    norms,
    record,
    second_differences,
    unequal,
)

# Letters: m layers, k = GROWTH new channels of each, C_i = START + i * k channels read by layer i = 0 ... m - 1,
# BOTTLENECK channels in each, ROWS pixels of all images, KEPT channels that the transition makes.
START, GROWTH, BOTTLENECK = 6, 8, 32
IMAGES, SIDES = 2, (6, 4)
ROWS = IMAGES * SIDES[0] * SIDES[1]
KEPT = 5
PEAK_IMAGES = 32
LAYERS = (4, 8, 12, 16)
FORMATS = [torch.contiguous_format, torch.channels_last]
READERS = ["transition", "norm"]


def stage(
    num_layers: int,
    reader: str = "transition",
    *,
    start: int = START,
    growth: int = GROWTH,
    bn_size: int = 4,
    kept: int = KEPT,
    drop_rate: float = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[DenseBlock, nn.Module]:
    """Build a block and what reads it, with norms that are not the identity."""
    torch.manual_seed(0)
    block = DenseBlock(num_layers, start, growth, bn_size, drop_rate, checkpoint=False)
    num_features = start + num_layers * growth
    last = Transition(num_features, kept) if reader == "transition" else nn.BatchNorm2d(num_features)
    for norm in (*norms(block), *norms(last)):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    return block.to(dtype), last.to(dtype)


def random_maps(channels: int = START, dtype: torch.dtype = torch.float32) -> Tensor:
    maps = torch.randn(IMAGES, channels, *SIDES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return maps.to(dtype).requires_grad_()


def call_modules(maps: Tensor, block: nn.Module, reader: nn.Module) -> Tensor:
    result = reader(block(maps))
    return result if isinstance(reader, Transition) else average(result)


Read = Callable[[Tensor, nn.Module, nn.Module], Tensor]
Precision = Callable[[], AbstractContextManager]
BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def step(
    read: Read,
    maps: Tensor,
    block: nn.Module,
    reader: nn.Module,
    *,
    of_forward: Precision = nullcontext,
    of_backward: Precision = nullcontext,
) -> dict[str, Tensor]:
    """Run forward and backward, with a loss that weighs each value of the result differently."""
    maps = maps.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(2)
    with of_forward():
        result = read(maps, block, reader)
    torch.manual_seed(3)
    grad = torch.randn(result.shape, dtype=torch.float64).to(result.dtype)
    with of_backward():
        result.backward(grad)
    return record(nn.ModuleList([block, reader]), result=result, **{"gradient of maps": maps.grad})


# Gradients


@pytest.mark.parametrize("num_bottlenecks", [0, 1])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_gradients_agree_with_finite_differences(reader, frozen, num_bottlenecks):
    block, last = stage(2, reader, start=3, growth=2, bn_size=2, kept=2, dtype=torch.float64)
    if frozen:
        block.denselayer1.norm1.eval()
        block.denselayer2.norm2.eval()
        block.denselayer2.norm1.eps = 0.1
    maps = torch.randn(3, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    parameters = (*block.parameters(), *last.parameters())

    def read(maps: Tensor, *_: Tensor) -> Tensor:
        return read_block(maps, block, last, num_bottlenecks=num_bottlenecks)

    assert torch.autograd.gradcheck(read, (maps, *parameters))


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
@pytest.mark.parametrize("reader", READERS)
def test_chunks_of_any_size_give_the_same_step(reader, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    maps = random_maps(dtype=torch.float64)
    expected, actual = (step(read, maps, *stage(3, reader, dtype=maps.dtype)) for read in (call_modules, read_block))
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("sides", [(2, 2), (3, 5), (7, 2), (5, 9)])
def test_a_transition_drops_an_odd_row_and_column(sides):
    maps = torch.randn(3, START, *sides, dtype=torch.float64)
    expected, actual = (step(read, maps, *stage(2, dtype=maps.dtype)) for read in (call_modules, read_block))
    assert actual["result"].shape == (3, KEPT, sides[0] // 2, sides[1] // 2)
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_transition_keeps_the_memory_format(memory_format):
    maps = random_maps().detach().contiguous(memory_format=memory_format)
    result = read_block(maps, *stage(2))
    assert result.is_contiguous(memory_format=memory_format)


def test_maps_that_are_a_slice_give_the_same_step():
    maps = torch.randn(IMAGES, 2 * START, *SIDES, dtype=torch.float64)[:, ::2]
    assert not maps.is_contiguous()
    expected, actual = (step(read, maps, *stage(2, dtype=maps.dtype)) for read in (call_modules, read_block))
    assert largest_difference(actual, expected) < 1e-12


def test_the_maps_and_the_gradient_handed_over_are_left_alone():
    maps, (block, last) = random_maps(), stage(2)
    result = read_block(maps, block, last)
    grad = torch.randn_like(result)
    before = [tensor.detach().clone() for tensor in (maps, grad)]
    result.backward(grad)
    assert torch.equal(maps, before[0])
    assert torch.equal(grad, before[1])


def test_a_gradient_that_is_expanded_is_as_good():
    block, last = stage(2, dtype=torch.float64)
    maps = random_maps(dtype=torch.float64)
    read_block(maps, block, last).sum().backward()
    expected = maps.grad
    maps.grad = None
    call_modules(maps, block, last).sum().backward()
    torch.testing.assert_close(maps.grad, expected, rtol=1e-10, atol=1e-12)


# Channels that are hard for fewer bits


def errors(read: Read, maps: Tensor, reader: str, truth: dict[str, Tensor]) -> dict[str, float]:
    """Distance from the truth, relative to its length: of result and of all gradients together, and of variances."""
    actual = step(read, maps, *stage(3, reader))
    kinds = {"result": "result", "gradients": "gradient of ", "variances": "running_var"}
    result = {}
    for kind, part in kinds.items():
        left, right = (torch.cat([t.flatten() for n, t in r.items() if part in n]) for r in (actual, truth))
        result[kind] = ((left.double() - right).norm() / right.norm()).item()
    return result


@pytest.mark.parametrize("ratio", [100, 1000])
@pytest.mark.parametrize("reader", READERS)
def test_errors_for_means_far_above_the_deviation_are_those_of_modules(reader, ratio):
    maps = (random_maps().detach() + ratio).float()
    truth = step(call_modules, maps.double(), *stage(3, reader, dtype=torch.float64))
    expected, actual = (errors(read, maps, reader, truth) for read in (call_modules, read_block))
    assert {kind: error for kind, error in actual.items() if error > 1.5 * expected[kind] + 1e-6} == {}


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
@pytest.mark.parametrize("reader", READERS)
def test_constant_channels_are_the_same(reader, value):
    maps = random_maps(dtype=torch.float64).detach().clone()
    maps[:, 1] = value
    expected, actual = (step(read, maps, *stage(3, reader, dtype=maps.dtype)) for read in (call_modules, read_block))
    assert all(tensor.isfinite().all() for tensor in actual.values())
    assert largest_difference(actual, expected) < 1e-10


def test_parameters_of_zero_are_the_same():
    def with_zeros() -> tuple[DenseBlock, nn.Module]:
        block, last = stage(3, dtype=torch.float64)
        for norm in (block.denselayer1.norm1, block.denselayer2.norm2, last.norm):
            nn.init.zeros_(norm.weight)
        return block, last

    maps = random_maps(dtype=torch.float64)
    expected, actual = (step(read, maps, *with_zeros()) for read in (call_modules, read_block))
    assert largest_difference(actual, expected) < 1e-12


# What is kept


def kept_bytes_in_closed_form(num_layers: int, drop_rate: float, num_bottlenecks: int) -> int:
    # The buffer; mean, variance and inverse deviation of each of its channels, mean and inverse deviation of those of
    # all bottlenecks; bottlenecks that are kept; and for dropout a byte for each new value.
    channels = START + num_layers * GROWTH
    of_buffer = 4 * ROWS * channels + 3 * 4 * channels
    of_bottlenecks = 2 * 4 * num_layers * BOTTLENECK + 4 * num_bottlenecks * ROWS * BOTTLENECK
    return of_buffer + of_bottlenecks + (ROWS * GROWTH * num_layers if drop_rate else 0)


@pytest.mark.parametrize("num_bottlenecks", [0, 1, 4])
@pytest.mark.parametrize("drop_rate", [0, 0.2])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward(num_layers, reader, drop_rate, num_bottlenecks):
    maps, (block, last) = random_maps(), stage(num_layers, reader, drop_rate=drop_rate)
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    expected = kept_bytes_in_closed_form(num_layers, drop_rate, num_bottlenecks)
    read = partial(read_block, maps, block, last, num_bottlenecks=num_bottlenecks)
    assert bytes_saved_for_backward(read, without=given) == expected
    with LiveStorages() as storages:
        result = read()
    assert storages.live_bytes(without=[result, *given]) == expected


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_alive_after_the_backward_pass(reader):
    maps, (block, last) = random_maps(), stage(3, reader, drop_rate=0.2)
    with LiveStorages() as storages:
        result = read_block(maps, block, last)
        result.sum().backward()
    gradients = [tensor.grad for tensor in (maps, *block.parameters(), *last.parameters())]
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    assert storages.live_bytes(without=[result, *given, *gradients]) == 0


def test_kept_bytes_grow_linearly_with_the_layers():
    kept = []
    for num_layers in LAYERS:
        maps, (block, last) = random_maps(), stage(num_layers)
        with LiveStorages() as storages:
            result = read_block(maps, block, last)
        given = [*block.buffers(), *last.buffers(), *block.parameters(), *last.parameters()]
        kept.append(storages.live_bytes(without=[result, *given]))
    assert kept[0] > 0
    assert second_differences(kept) == [0, 0]


def peak_bytes(read: Read, num_layers: int) -> int:
    """Measure the peak of what is alive in forward and backward, besides gradients of the block's weights."""
    block, last = stage(num_layers)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    weights = {tuple(parameter.shape) for parameter in block.parameters()}
    with LiveStorages(counts=lambda tensor: tuple(tensor.shape) not in weights) as storages:
        read(maps, block, last).sum().backward()
    return storages.peak_bytes


def test_peak_of_a_training_step_grows_by_two_buffers_and_a_few_chunks(monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    peaks = [peak_bytes(read_block, m) for m in (8, 16, 24, 32)]
    an_image = 4 * SIDES[0] * SIDES[1] * 8 * GROWTH
    most = 2 * PEAK_IMAGES * an_image + 8 * an_image
    assert all(after - before <= most for before, after in pairwise(peaks))
    assert peaks[-1] < peak_bytes(call_modules, 32) / 10


@pytest.mark.parametrize("reader", READERS)
def test_a_forward_pass_has_one_bottleneck_and_a_few_images_beside_what_it_keeps(reader, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    block, last = stage(24, reader)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    with LiveStorages() as storages:
        result = read_block(maps, block, last)
    of_pixels = 4 * SIDES[0] * SIDES[1]
    an_image, a_bottleneck = of_pixels * (START + 24 * GROWTH), of_pixels * PEAK_IMAGES * BOTTLENECK
    others = 3 * result.nbytes + 4 * an_image
    assert storages.peak_bytes <= storages.live_bytes(without=[result]) + a_bottleneck + others


# What is computed


def operations(read: Read, num_layers: int, reader: str) -> dict[str, int]:
    block, last = stage(num_layers, reader)
    with OperationCounts() as mode:
        read(random_maps(), block, last).sum().backward()
    return {name: count for name, count in mode.counts.items() if name.startswith("convolution")}


@pytest.mark.parametrize("num_bottlenecks", [0, 2, 5])
@pytest.mark.parametrize("reader", READERS)
def test_only_the_convolutions_of_bottlenecks_that_are_not_kept_run_twice(reader, num_bottlenecks):
    m, transitions = 5, reader == "transition"
    assert operations(partial(read_block, num_bottlenecks=num_bottlenecks), m, reader) == {
        "convolution 3x3": m,
        "convolution_backward 3x3": m,
        "convolution 1x1": 2 * m - num_bottlenecks + transitions,
        "convolution_backward 1x1": m + transitions,
    }


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
@pytest.mark.parametrize("num_bottlenecks", [0, 2, 5])
@pytest.mark.parametrize("reader", READERS)
def test_floating_point_operations_are_those_of_the_closed_form(reader, num_bottlenecks, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    m = 5
    block, last = stage(m, reader)
    with FlopCounterMode(display=False) as counter:
        read_block(random_maps(), block, last, num_bottlenecks=num_bottlenecks).sum().backward()
    # Products: forward, gradient of the input, gradient of the weight. The 1x1 convolutions of the first layers, which
    # read the fewest channels, run again; the 3x3 convolutions do not.
    of_bottlenecks = [ROWS * (START + i * GROWTH) * BOTTLENECK for i in range(m)]
    again = sum(of_bottlenecks[: m - num_bottlenecks])
    of_layers = 3 * ROWS * m * BOTTLENECK * 9 * GROWTH
    of_transition = 3 * ROWS // 4 * (START + m * GROWTH) * KEPT if reader == "transition" else 0
    # A multiplication and an addition count as two.
    assert counter.get_total_flops() == 2 * (3 * sum(of_bottlenecks) + again + of_layers + of_transition)


def test_statistics_are_computed_once_for_each_map():
    # Once for the maps of each layer and for the block's input, and once for each bottleneck.
    m = 5
    block, last = stage(m)
    with OperationCounts() as mode:
        read_block(random_maps(), block, last).sum().backward()
    assert mode.counts["batch_norm_update_stats"] == (m + 1) + m
    assert mode.counts["native_batch_norm"] == 0
    assert mode.counts["cat"] <= 1


@pytest.mark.parametrize("reader", READERS)
def test_gradients_of_norms_are_sums_of_32_bits_under_autocast(reader):
    actual = step(read_block, random_maps(), *stage(3, reader), of_forward=BF16)
    of_norms = {name: actual[name] for name in actual if re.match("gradient of (?!maps)(?!.*conv)", name)}
    assert len(of_norms) == 2 * (2 * 3 + 1)
    assert [name for name, tensor in of_norms.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


def test_gradients_of_convolutions_add_up_in_32_bits_under_autocast(monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    actual = step(read_block, random_maps(), *stage(3), of_forward=BF16)
    of_convolutions = {name: actual[name] for name in actual if re.match("gradient of .*conv", name)}
    assert len(of_convolutions) == 2 * 3 + 1
    assert [name for name, tensor in of_convolutions.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
def test_bottlenecks_that_are_kept_change_no_bit(precision):
    reads = (partial(read_block, num_bottlenecks=count) for count in (0, 2, 3))
    none, some, all_ = (step(read, random_maps(), *stage(3, drop_rate=0.2), of_forward=precision) for read in reads)
    assert unequal(none, some) == unequal(none, all_) == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
def test_two_steps_give_the_same_bits(precision):
    first, second = (step(read_block, random_maps(), *stage(3, drop_rate=0.2), of_forward=precision) for _ in range(2))
    assert unequal(first, second) == []


@pytest.mark.parametrize("of_forward", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("reader", READERS)
def test_autocast_around_the_backward_pass_changes_no_bit(reader, of_forward):
    outside, inside = (
        step(read_block, random_maps(), *stage(3, reader), of_forward=of_forward, of_backward=of_backward)
        for of_backward in (nullcontext, BF16)
    )
    assert unequal(outside, inside) == []
