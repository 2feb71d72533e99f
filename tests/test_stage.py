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
KINDS = pytest.mark.parametrize("bn_size", [4, None], ids=["bottlenecks", "plain"])
DROPPING = {"drop_rate": 0.2, "drop_where": "convolutions"}
DROPOUTS = {"nothing": {}, "layers": {"drop_rate": 0.2}, "convolutions": DROPPING}


def stage(
    num_layers: int,
    reader: str = "transition",
    *,
    start: int = START,
    growth: int = GROWTH,
    bn_size: int | None = 4,
    kept: int = KEPT,
    drop_rate: float = 0,
    drop_where: str = "layers",
    dtype: torch.dtype = torch.float32,
) -> tuple[DenseBlock, nn.Module]:
    """Build a block and what reads it, with norms that are not the identity."""
    torch.manual_seed(0)
    inner_rate = drop_rate if drop_where == "convolutions" else 0
    block = DenseBlock(num_layers, start, growth, bn_size, drop_rate, False, inner_rate)
    num_features = start + num_layers * growth
    last = Transition(num_features, kept, inner_rate) if reader == "transition" else nn.BatchNorm2d(num_features)
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
    assert_gradients_of(block, last, num_bottlenecks)


@pytest.mark.parametrize(("bn_size", "num_bottlenecks"), [(2, 0), (2, 1), (None, 0)])
@pytest.mark.parametrize("reader", READERS)
def test_gradients_of_all_that_drops_agree_with_finite_differences(bn_size, reader, num_bottlenecks):
    sizes = {"start": 3, "growth": 2, "bn_size": bn_size, "kept": 2}
    block, last = stage(2, reader, **sizes, **DROPPING, dtype=torch.float64)
    assert_gradients_of(block, last, num_bottlenecks, sides=(2, 2))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_plain_layers_agree_with_finite_differences(frozen):
    block, last = stage(2, start=3, growth=2, bn_size=None, kept=2, dtype=torch.float64)
    block.denselayer2.norm1.train(not frozen)
    assert_gradients_of(block, last, num_bottlenecks=0, sides=(2, 2))


def assert_gradients_of(
    block: DenseBlock, last: nn.Module, num_bottlenecks: int, sides: tuple[int, int] = (4, 2)
) -> None:
    maps = torch.randn(3, 3, *sides, dtype=torch.float64, requires_grad=True)
    parameters = (*block.parameters(), *last.parameters())

    def read(maps: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(0)
        return read_block(maps, block, last, num_bottlenecks=num_bottlenecks)

    assert torch.autograd.gradcheck(read, (maps, *parameters))


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**30])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("reader", READERS)
@KINDS
def test_chunks_of_any_size_give_the_same_step(bn_size, reader, dropout, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    maps = random_maps(dtype=torch.float64)
    config = DROPOUTS[dropout] | {"bn_size": bn_size, "dtype": maps.dtype}
    expected, actual = (step(read, maps, *stage(3, reader, **config)) for read in (call_modules, read_block))
    assert largest_difference(actual, expected) < 1e-12


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("sides", [(2, 2), (3, 5), (7, 2), (5, 9)])
def test_a_transition_drops_an_odd_row_and_column(sides, dropout):
    maps = torch.randn(3, START, *sides, dtype=torch.float64)
    config = DROPOUTS[dropout] | {"dtype": maps.dtype}
    expected, actual = (step(read, maps, *stage(2, **config)) for read in (call_modules, read_block))
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


def kept_bytes_in_closed_form(num_layers: int, num_bottlenecks: int) -> int:
    # The buffer; mean, variance and inverse deviation of each of its channels, mean and inverse deviation of those of
    # all bottlenecks; and bottlenecks that are kept.
    of_bottlenecks = 2 * 4 * num_layers * BOTTLENECK + 4 * num_bottlenecks * ROWS * BOTTLENECK
    return kept_bytes_without_bottlenecks(num_layers) + of_bottlenecks


def kept_bytes_without_bottlenecks(num_layers: int) -> int:
    channels = START + num_layers * GROWTH
    return 4 * ROWS * channels + 3 * 4 * channels


def bytes_of_masks(num_layers: int, dropout: str, bn_size: int | None, reader: str) -> int:
    # A byte for each value behind the convolutions that drop some.
    inner = BOTTLENECK * num_layers if bn_size else 0
    of_transition = KEPT if reader == "transition" else 0
    columns = {"nothing": 0, "layers": GROWTH * num_layers}
    columns["convolutions"] = columns["layers"] + inner + of_transition
    return ROWS * columns[dropout]


@pytest.mark.parametrize("num_bottlenecks", [0, 1, 4])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward(num_layers, reader, dropout, num_bottlenecks):
    block, last = stage(num_layers, reader, **DROPOUTS[dropout])
    expected = kept_bytes_in_closed_form(num_layers, num_bottlenecks) + bytes_of_masks(num_layers, dropout, 4, reader)
    assert_kept_bytes(block, last, expected, num_bottlenecks)


@pytest.mark.parametrize("num_bottlenecks", [0, 4])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_layers", LAYERS)
def test_bytes_kept_for_backward_without_bottlenecks(num_layers, reader, dropout, num_bottlenecks):
    block, last = stage(num_layers, reader, bn_size=None, **DROPOUTS[dropout])
    expected = kept_bytes_without_bottlenecks(num_layers) + bytes_of_masks(num_layers, dropout, None, reader)
    assert_kept_bytes(block, last, expected, num_bottlenecks)


def assert_kept_bytes(block: DenseBlock, last: nn.Module, expected: int, num_bottlenecks: int) -> None:
    maps = random_maps()
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    read = partial(read_block, maps, block, last, num_bottlenecks=num_bottlenecks)
    assert bytes_saved_for_backward(read, without=given) == expected
    with LiveStorages() as storages:
        result = read()
    assert storages.live_bytes(without=[result, *given]) == expected


@pytest.mark.parametrize("reader", READERS)
@KINDS
def test_nothing_is_alive_after_the_backward_pass(bn_size, reader):
    maps, (block, last) = random_maps(), stage(3, reader, bn_size=bn_size, **DROPPING)
    with LiveStorages() as storages:
        result = read_block(maps, block, last)
        result.sum().backward()
    gradients = [tensor.grad for tensor in (maps, *block.parameters(), *last.parameters())]
    given = [maps, *block.parameters(), *block.buffers(), *last.parameters(), *last.buffers()]
    assert storages.live_bytes(without=[result, *given, *gradients]) == 0


@KINDS
def test_only_buffers_are_as_large_as_what_a_dropping_transition_would_make_of_all_pixels(bn_size, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    num_layers, kept = 8, 60
    assert BOTTLENECK < kept < START + num_layers * GROWTH
    block, last = stage(num_layers, bn_size=bn_size, kept=kept, **DROPPING)
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    rows = PEAK_IMAGES * SIDES[0] * SIDES[1]

    def is_large(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.untyped_storage().nbytes() >= 4 * rows * kept

    a_buffer = 4 * rows * (START + num_layers * GROWTH)
    with LiveStorages(counts=is_large) as storages:
        result = read_block(maps, block, last)
    assert storages.peak_bytes == a_buffer
    with storages:
        result.sum().backward()
    assert storages.peak_bytes == 2 * a_buffer


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_only_buffers_are_larger_than_a_chunk_without_bottlenecks(reader, dropout, monkeypatch):
    num_layers, chunk_bytes = 8, 30_000
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    block, last = stage(num_layers, reader, bn_size=None, **DROPOUTS[dropout])
    maps = torch.randn(PEAK_IMAGES, START, *SIDES, requires_grad=True)
    with LiveStorages(counts=lambda tensor: tensor.untyped_storage().nbytes() > chunk_bytes) as storages:
        read_block(maps, block, last).sum().backward()
    assert storages.peak_bytes == 2 * 4 * PEAK_IMAGES * SIDES[0] * SIDES[1] * (START + num_layers * GROWTH)


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


def operations(read: Read, num_layers: int, reader: str, **config) -> dict[str, int]:
    block, last = stage(num_layers, reader, **config)
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


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_no_convolution_runs_twice_without_bottlenecks(reader, dropout):
    m = 5
    of_transition = {"convolution 1x1": 1, "convolution_backward 1x1": 1} if reader == "transition" else {}
    expected = {"convolution 3x3": m, "convolution_backward 3x3": m, **of_transition}
    assert operations(read_block, m, reader, bn_size=None, **DROPOUTS[dropout]) == expected


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_floating_point_operations_of_plain_layers_are_those_of_the_closed_form(dropout, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    m = 5
    block, last = stage(m, bn_size=None, **DROPOUTS[dropout])
    with FlopCounterMode(display=False) as counter:
        read_block(random_maps(), block, last).sum().backward()
    of_layers = sum(ROWS * (START + i * GROWTH) * 9 * GROWTH for i in range(m))
    # With dropout between convolution and pooling the convolution has to make all pixels.
    pixels = ROWS if dropout == "convolutions" else ROWS // 4
    of_transition = pixels * (START + m * GROWTH) * KEPT
    # Forward, gradient of the input, gradient of the weight; a multiplication and an addition count as two.
    assert counter.get_total_flops() == 2 * 3 * (of_layers + of_transition)


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


@KINDS
def test_statistics_are_computed_once_for_each_map(bn_size):
    # Once for the maps of each layer and for the block's input, and once for each bottleneck.
    m = 5
    block, last = stage(m, bn_size=bn_size)
    with OperationCounts() as mode:
        read_block(random_maps(), block, last).sum().backward()
    assert mode.counts["batch_norm_update_stats"] == (m + 1) + (m if bn_size else 0)
    assert mode.counts["native_batch_norm"] == 0
    assert mode.counts["cat"] <= 1


@pytest.mark.parametrize("reader", READERS)
@KINDS
def test_gradients_of_norms_are_sums_of_32_bits_under_autocast(bn_size, reader):
    actual = step(read_block, random_maps(), *stage(3, reader, bn_size=bn_size), of_forward=BF16)
    of_norms = {name: actual[name] for name in actual if re.match("gradient of (?!maps)(?!.*conv)", name)}
    assert len(of_norms) == 2 * ((2 if bn_size else 1) * 3 + 1)
    assert [name for name, tensor in of_norms.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


@pytest.mark.parametrize("dropout", DROPOUTS)
@KINDS
def test_gradients_of_convolutions_add_up_in_32_bits_under_autocast(bn_size, dropout, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 1)  # The least chunk is one image.
    actual = step(read_block, random_maps(), *stage(3, bn_size=bn_size, **DROPOUTS[dropout]), of_forward=BF16)
    of_convolutions = {name: actual[name] for name in actual if re.match("gradient of .*conv", name)}
    assert len(of_convolutions) == (2 if bn_size else 1) * 3 + 1
    assert [name for name, tensor in of_convolutions.items() if torch.equal(tensor, tensor.bfloat16().float())] == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_bottlenecks_that_are_kept_change_no_bit(dropout, precision):
    reads = (partial(read_block, num_bottlenecks=count) for count in (0, 2, 3))
    config = DROPOUTS[dropout]
    none, some, all_ = (step(read, random_maps(), *stage(3, **config), of_forward=precision) for read in reads)
    assert unequal(none, some) == unequal(none, all_) == []


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@KINDS
def test_two_steps_give_the_same_bits(bn_size, precision):
    config = DROPPING | {"bn_size": bn_size}
    first, second = (step(read_block, random_maps(), *stage(3, **config), of_forward=precision) for _ in range(2))
    assert unequal(first, second) == []


@pytest.mark.parametrize("of_forward", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("reader", READERS)
@KINDS
def test_autocast_around_the_backward_pass_changes_no_bit(bn_size, reader, of_forward):
    config = DROPPING | {"bn_size": bn_size}
    outside, inside = (
        step(read_block, random_maps(), *stage(3, reader, **config), of_forward=of_forward, of_backward=of_backward)
        for of_backward in (nullcontext, BF16)
    )
    assert unequal(outside, inside) == []
