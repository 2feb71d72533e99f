"""Memory and time against depth, and the plot of memory."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from commands.benchmark.depths import ByDepth, draw_depths, measure_by_depth, spread
from commands.benchmark.measure import memory_of_step
from commands.benchmark.step import CLASSES
from commands.networks import DEPTHS, depths_of_plot
from models import STRATEGIES
from tests.support.application import run_here
from tests.support.benchmark_cases import BASELINES, SMALL, TINY, rows_of, small, variant, variants


def test_plot_is_a_png_of_the_documented_size_after_the_table(tmp_path, capsys):
    path = tmp_path / "memory.png"
    assert run_here("benchmark", *TINY, "--rounds=0", f"--plot={path}", "--depths=22,10,10") == 0
    output = capsys.readouterr().out
    assert len(rows_of(output)) == len(variants())
    header = next(line for line in output.splitlines() if line.startswith("peak MB, batch 4"))
    assert header.split()[-2:] == ["L=10", "L=22"]
    plot = matplotlib.image.imread(path)
    assert plot.shape[:2] == (960, 1440)
    assert np.unique(plot.reshape(-1, plot.shape[2]), axis=0).shape[0] > 50


def test_measurements_by_depth_are_those_of_single_steps_and_linear_in_the_batch():
    measured = measure_by_depth(variants(), small(batch_size=100), depths=[16, 10], rounds=0)
    assert (measured.depths, measured.case.batch_size) == ([10, 16], 16)
    assert list(measured.peaks) == ["naive", *STRATEGIES[1:], *BASELINES]
    for depth, peak in zip(measured.depths, measured.peaks["checkpoint"], strict=True):
        step = variant("checkpoint").step(small(depth=depth, batch_size=16))
        assert memory_of_step(step).peak == peak
    assert measured.nonlinearity.keys() == measured.peaks.keys()
    assert max(measured.nonlinearity.values()) < 0.1
    assert measured.seconds == {}
    # Products of forward and of both gradients, but for that of the images: first convolution; layers of 1x1 and 3x3;
    # transitions to half of the channels; classifier. A multiplication and an addition count as two.
    k, pixels = SMALL.network.growth_rate, SMALL.network.image_size**2
    for m, flops in zip((1, 2), measured.flops, strict=True):
        channels, products = 2 * k, 2 * 3 * 2 * k * 9 * pixels
        for block in range(3):
            of_layers = sum((channels + i * k) * 4 * k + 4 * k * k * 9 for i in range(m)) * (pixels >> 2 * block)
            channels += m * k
            of_transition = channels * (channels // 2) * (pixels >> 2 * block) if block < 2 else channels * CLASSES
            channels = channels // 2 if block < 2 else channels
            products += 3 * (of_layers + of_transition)
        assert flops == 2 * 16 * products


def test_time_by_depth_is_given_in_seconds_and_per_gflop():
    by_depth = ByDepth([40], {"naive": [10**6]}, {"naive": [0.25]}, [5 * 10**9], SMALL, {"naive": 0.01})
    lines = by_depth.as_text().splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("naive")] == ["1.0", "0.250", "50.00"]
    assert any(line.startswith("GFLOP of a step of naive: 5;") for line in lines)


def test_time_by_depth_is_measured_for_each_variant():
    few = variants()[:3]
    measured = measure_by_depth(few, SMALL, depths=[10], rounds=1)
    assert list(measured.seconds) == ["naive", "checkpoint"]
    assert all(len(of_depths) == 1 and of_depths[0] > 0 for of_depths in measured.seconds.values())


def test_one_depth_or_unknown_names_can_be_drawn():
    for depths in ([40], [40, 100]):
        peaks = {f"strategy {number}": [10**6] * len(depths) for number in range(9)}
        assert draw_depths(ByDepth(depths, peaks, {}, [1] * len(depths), SMALL, {"naive": 0.01})).startswith(b"\x89PNG")


def test_the_plot_has_a_title_and_a_note_in_sentences(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    case = small(depth=40, growth_rate=12, batch_size=16, image_size=32)
    draw_depths(ByDepth([40, 100], {"naive": [10**6] * 2, "buffer": [10**5] * 2}, {}, [1, 1], case, {"naive": 0.039}))
    assert figures[0].get_suptitle().splitlines() == [
        "Peak memory of a training step against depth",
        "DenseNet-BC, k=12, batch 16 of 32x32, fp32",
    ]
    note, machine = figures[0].get_supxlabel().splitlines()
    assert note == (
        "peak memory grows linearly with the batch: at L=40, 48 images take what 16 and 32 predict, within 3.9% (naive)"
    )
    assert machine.endswith("batch 16 of 32x32")
    figures[0].draw_without_rendering()
    box = figures[0]._supxlabel.get_window_extent()
    assert figures[0].bbox.x0 < box.x0 < box.x1 < figures[0].bbox.x1


def test_labels_are_moved_apart_and_not_further():
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    assert spread([0.1, 0.5, 0.5], 0.1) == pytest.approx([0.1, 0.45, 0.55])
    assert spread([0.50, 0.52, 0.58], 0.1) == pytest.approx([0.433333, 0.533333, 0.633333], abs=1e-5)


def test_default_depths_of_the_plot_are_depths_of_the_network():
    for network, limits in DEPTHS.items():
        depths = depths_of_plot(network, depths=None, is_drawn=True)
        assert len(depths) == 4
        assert all(depth in limits for depth in depths)
        assert depths_of_plot(network, depths=(10, 16), is_drawn=True) == (10, 16)


def test_a_plain_network_can_be_plotted_by_depth():
    case = small(network="densenet")
    measured = measure_by_depth(variants(small(network="densenet", depth=13).network), case, depths=[7, 13], rounds=0)
    assert list(measured.peaks) == ["naive", *STRATEGIES[1:], BASELINES[2]]
    assert draw_depths(measured).startswith(b"\x89PNG")
