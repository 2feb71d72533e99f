"""The count of a step's memory on fake tensors, against measurements of the same step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from commands.benchmark.count import LiveBytes, state_bytes, training_bytes
from commands.benchmark.measure import memory_of, peak_of_step
from models import STRATEGIES
from models.buffer import rows
from models.buffer.device import as_on_gpu
from tests.support.benchmark_cases import BASELINES, CPU, small, variant, variants

# Large enough that temporaries of a few kB inside operators, which only the measurement sees, are below 1 %.
SIZES = {"depth": 16, "growth_rate": 8, "batch_size": 16, "image_size": 32}
CASE = small(**SIZES)
CASES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "dropout": {"drop_rate": 0.2},
    "bf16 and dropout": {"precision": "bf16", "drop_rate": 0.2, "batch_size": 13},
    "plain": {"network": "densenet"},
    "large images": {"image_size": 72, "batch_size": 8},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counted_peak_of_a_strategy_is_the_measured_one(strategy, changes):
    case = small(**SIZES | changes)
    assert training_bytes(variant(strategy), case).peak == pytest.approx(
        peak_of_step(variant(strategy).step(case)), 0.01
    )


@pytest.mark.parametrize("name", BASELINES)
def test_counted_peak_of_other_implementations_is_the_measured_one(name):
    assert training_bytes(variant(name), CASE).peak == pytest.approx(peak_of_step(variant(name).step(CASE)), 0.01)


def test_counted_peak_in_the_other_memory_format_is_the_measured_one():
    contiguous = variants()[1]
    assert contiguous.memory_format == "contiguous"
    assert training_bytes(contiguous, CASE).peak == pytest.approx(peak_of_step(contiguous.step(CASE)), 0.01)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counted_peak_of_densenet121_is_the_measured_one(strategy):
    """Weights of many channels and few pixels, so that temporaries inside operators weigh more."""
    case = small(network="densenet121", depth=121, growth_rate=32, image_size=64, batch_size=2)
    assert training_bytes(variant(strategy), case).peak == pytest.approx(
        peak_of_step(variant(strategy).step(case)), 0.03
    )


@pytest.mark.parametrize("strategy", ["buffer", "buffer_fast"])
def test_two_chunks_stand_for_many(strategy, monkeypatch):
    monkeypatch.setattr(rows, "CPU_CHUNK_BYTES", 2**16)
    case = replace(CASE, batch_size=20)
    assert training_bytes(variant(strategy), case).peak == pytest.approx(
        peak_of_step(variant(strategy).step(case)), 0.01
    )


def test_chunks_are_left_out_during_a_count_only():
    def count_chunks():
        return len(list(rows.chunks_of_rows(2**22, 4, 2**20)))

    with rows.two_chunks_for_all():
        assert count_chunks() == 2
    assert count_chunks() > 2


@pytest.mark.parametrize("image_size", [32, 512])
def test_a_count_allocates_no_feature_maps(image_size):
    case = small(**SIZES | {"image_size": image_size, "batch_size": 1000})
    counted, memory = memory_of(lambda: training_bytes(variant("naive"), case).peak, CPU)
    assert counted > 500 * 2**20
    # Labels and the seed of the images are the only tensors, if any, that are real.
    assert memory.peak < 2**20


def test_live_bytes_follow_storages_and_copies_of_mixed_types():
    with LiveBytes(CPU) as live:
        x = torch.zeros(1000)
        assert (live.live, live.peak) == (4000, 4000)
        y = x.view(10, 100)[2:]
        del x
        assert live.live == 4000  # the view keeps all of it
        del y
        assert live.live == 0
        narrow, factors = torch.zeros(1000, dtype=torch.bfloat16), torch.zeros(1000)
        assert live.start_peak() == 6000
        narrow.mul_(factors)  # a CPU computes in 32 bits: copies of what is read and of the result
        assert (live.live, live.peak) == (6000, 6000 + 2 * 4000)
        live.start_peak()
        with as_on_gpu((9, 0)):
            narrow.mul_(factors)  # a GPU converts in registers
        assert (live.live, live.peak) == (6000, 6000)


def test_training_bytes_are_state_batch_and_peak():
    images, labels = 16 * 3 * 32 * 32 * 4, 16 * 8
    counted = training_bytes(variant("naive"), CASE)
    assert counted.state == state_bytes(variant("naive").step(CASE).network)
    assert counted.batch == images + labels
    assert counted.step == counted.batch + counted.peak
    assert counted.total == counted.state + counted.step


def test_state_of_training_is_weights_gradients_momentum_and_buffers():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    # Weights: 6 + 2 + 2 + 2 floats, three times. Buffers: mean and variance of two channels and one int64.
    assert state_bytes(network) == 3 * 4 * 12 + (4 * 4 + 8)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counted_peak_on_a_gpu_is_that_of_its_allocator_but_for_workspaces(strategy):
    case = replace(CASE, batch_size=64, device=torch.device("cuda", 0))
    counted = training_bytes(variant(strategy), case).peak
    assert counted <= 1.03 * peak_of_step(variant(strategy).step(case))
