"""The convolutions, operations and statistics of a block over a buffer are those of closed forms."""

from functools import partial

import pytest
from torch.utils.flop_counter import FlopCounterMode

from models.buffer import rows as rows_module
from models.buffer.function import block_over_buffer
from tests.support.block_steps import (
    BOTTLENECK,
    ENDINGS,
    GROWTH,
    KEPT,
    KINDS,
    ROWS,
    START,
    Read,
    block_and_transition,
    random_input,
)
from tests.support.network_pairs import DROPOUTS
from tests.support.tensor_measurements import OperationCounts


def operations(read: Read, num_layers: int, ending: str, **config) -> dict[str, int]:
    block, last = block_and_transition(num_layers, ending, **config)
    with OperationCounts() as mode:
        read(random_input(), block, last).sum().backward()
    return {name: count for name, count in mode.counts.items() if name.startswith("convolution")}


@pytest.mark.parametrize("num_bottlenecks", [0, 2, 5])
@pytest.mark.parametrize("ending", ENDINGS)
def test_only_the_convolutions_of_bottlenecks_that_are_not_kept_run_twice(ending, num_bottlenecks):
    m, transitions = 5, ending == "transition"
    assert operations(partial(block_over_buffer, num_bottlenecks=num_bottlenecks), m, ending) == {
        "convolution 3x3": m,
        "convolution_backward 3x3": m,
        "convolution 1x1": 2 * m - num_bottlenecks + transitions,
        "convolution_backward 1x1": m + transitions,
    }


@pytest.mark.parametrize("num_bottlenecks", [0, 2, 5])
def test_a_small_backward_pass_computes_bottlenecks_that_are_not_kept_twice(num_bottlenecks):
    m = 5
    counts = operations(partial(block_over_buffer, num_bottlenecks=num_bottlenecks, is_small=True), m, "norm")
    assert counts == {
        "convolution 3x3": m,
        "convolution_backward 3x3": m,
        "convolution 1x1": 3 * m - 2 * num_bottlenecks,
        "convolution_backward 1x1": m,
    }


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_convolution_runs_twice_without_bottlenecks(ending, dropout):
    m = 5
    of_transition = {"convolution 1x1": 1, "convolution_backward 1x1": 1} if ending == "transition" else {}
    expected = {"convolution 3x3": m, "convolution_backward 3x3": m, **of_transition}
    assert operations(block_over_buffer, m, ending, bn_size=None, **DROPOUTS[dropout]) == expected


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_floating_point_operations_of_plain_layers_are_those_of_the_closed_form(dropout, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    m = 5
    block, last = block_and_transition(m, bn_size=None, **DROPOUTS[dropout])
    with FlopCounterMode(display=False) as counter:
        block_over_buffer(random_input(), block, last).sum().backward()
    of_layers = sum(ROWS * (START + i * GROWTH) * 9 * GROWTH for i in range(m))
    # With dropout between convolution and pooling the convolution has to make all pixels.
    pixels = ROWS if dropout == "convolutions" else ROWS // 4
    of_transition = pixels * (START + m * GROWTH) * KEPT
    # Forward, gradient of the input, gradient of the weight; a multiplication and an addition count as two.
    assert counter.get_total_flops() == 2 * 3 * (of_layers + of_transition)


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
@pytest.mark.parametrize("num_bottlenecks", [0, 2, 5])
@pytest.mark.parametrize("ending", ENDINGS)
def test_floating_point_operations_are_those_of_the_closed_form(ending, num_bottlenecks, chunk_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
    m = 5
    block, last = block_and_transition(m, ending)
    with FlopCounterMode(display=False) as counter:
        block_over_buffer(random_input(), block, last, num_bottlenecks=num_bottlenecks).sum().backward()
    # Products: forward, gradient of the input, gradient of the weight. The 1x1 convolutions of the first layers, which
    # read the fewest channels, run again; the 3x3 convolutions do not.
    of_bottlenecks = [ROWS * (START + i * GROWTH) * BOTTLENECK for i in range(m)]
    again = sum(of_bottlenecks[: m - num_bottlenecks])
    of_layers = 3 * ROWS * m * BOTTLENECK * 9 * GROWTH
    of_transition = 3 * ROWS // 4 * (START + m * GROWTH) * KEPT if ending == "transition" else 0
    # A multiplication and an addition count as two.
    assert counter.get_total_flops() == 2 * (3 * sum(of_bottlenecks) + again + of_layers + of_transition)


@KINDS
def test_statistics_are_computed_once_for_each_map(bn_size):
    # Once for the maps of each layer and for the block's input, and once for each bottleneck.
    m = 5
    block, last = block_and_transition(m, bn_size=bn_size)
    with OperationCounts() as mode:
        block_over_buffer(random_input(), block, last).sum().backward()
    assert mode.counts["batch_norm_update_stats"] == (m + 1) + (m if bn_size else 0)
    assert mode.counts["native_batch_norm"] == 0
    assert mode.counts["cat"] <= 1
