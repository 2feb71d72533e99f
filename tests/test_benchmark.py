"""The benchmark: its instruments against hand counts, its rivals, its check, its extrapolation and its command line."""

import csv
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from models import STRATEGIES, densenet_bc
from models import recompute as recompute_module
from models.densenet import DenseBlock
from tests.application import ROOT, run_apart, run_here
from train.benchmark import budget, measure
from train.benchmark.agreement import (
    agreement_in_fp64,
    forward_difference,
    gradient_difference,
    largest_difference,
    observe,
)
from train.benchmark.comparison import compare
from train.benchmark.depths import ByDepth, measure_by_depth
from train.benchmark.failures import one_line
from train.benchmark.growth import fit_growth
from train.benchmark.measure import memory_of, memory_of_step, paired_seconds
from train.benchmark.plot import draw_depths, spread
from train.benchmark.rivals import checkpoint_whole_layers, torchvision_densenet
from train.benchmark.step import CLASSES, Case, Step
from train.benchmark.variants import all_variants, draw_weights
from train.errors import RunError, UserError
from train.results.tables import aligned

CPU = torch.device("cpu")
SMALL = Case(10, 2, batch_size=4, image_size=8, drop_rate=0, precision="fp32", device=CPU)
TINY = ["--depth=10", "--growth_rate=2", "--batch_size=4", "--image_size=8"]
RIVALS = ["torchvision", "torchvision memory_efficient", "whole layers checkpointed"]


def variants(build=lambda strategy, **network: densenet_bc(**network, efficient=strategy)):
    return all_variants(build, STRATEGIES, memory_format="channels_last", with_compile=False)


def variant(name):
    return next(found for found in variants() if found.name == name)


# The instruments. All counts are of float32, 4 bytes each.


def test_peak_and_rest_of_a_function_with_known_temporaries():
    def function():
        kept = torch.zeros(1000)
        temporary = torch.zeros(500)
        del temporary
        return kept, torch.zeros(250)

    result, memory = memory_of(function, CPU)
    assert len(result) == 2
    assert (memory.peak, memory.kept) == (4 * 1500, 4 * 1250)


def test_memory_that_was_there_before_does_not_count():
    before = [torch.zeros(1000), memory_of(lambda: torch.zeros(1000), CPU)[0]]
    assert memory_of(before.clear, CPU)[1] == measure.Memory(peak=0, kept=0)


def test_a_temporary_inside_an_operator_counts():
    # A product that cannot be written where it belongs is made elsewhere and copied.
    left, right = torch.ones(40, 30), torch.ones(30, 20)
    out = torch.empty(20, 40, 2)[:, :, 0].t()
    memory = memory_of(lambda: torch.mm(left, right, out=out), CPU)[1]
    assert (memory.peak, memory.kept) == (4 * 40 * 20, 0)


def test_what_a_custom_function_hides_from_autograd_counts_as_kept():
    class Hiding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = torch.zeros(1000)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    x = torch.zeros(10, requires_grad=True)
    y, memory = memory_of(lambda: Hiding.apply(x), CPU)
    assert y.requires_grad
    assert memory.kept == 4 * (10 + 1000)


class Chain(nn.Module):
    """A product, exp and sine of 100 values for each image; the first two are logits."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(100))

    def forward(self, images):
        return (images * self.scale).exp().sin()[:, :2]


def test_memory_of_a_step_is_that_of_a_hand_count():
    step = Step(Chain(), torch.ones(50, 100), torch.zeros(50, dtype=torch.int64))
    one_map, number = 4 * 50 * 100, 4
    # Backward needs what exp returned (for exp and for the sine), and of the loss the logarithms (50, 2) and the sum of
    # weights. The product is free after exp, the sine after the loss. The loss itself is returned.
    memory = memory_of_step(step)
    assert memory.kept == one_map + 4 * 50 * 2 + 2 * number
    # The most is alive when the sine goes backward: what exp returned, the gradient of the sine, the cosine and the
    # product of these two; and the loss and its gradient, 1.
    assert memory.peak == 4 * one_map + 2 * number


@pytest.mark.parametrize("num_layers", [1, 4, 8])
def test_kept_bytes_of_a_naive_block_are_those_of_the_closed_form(num_layers):
    start, growth, bottleneck, pixels = 6, 8, 32, 2 * 5 * 4
    torch.manual_seed(0)
    block = DenseBlock(num_layers, start, growth, bn_size=4, drop_rate=0, checkpoint=False)
    x = torch.randn(2, start, 5, 4, requires_grad=True)
    y, memory = memory_of(lambda: block(x), CPU)
    # Each norm keeps its input and two statistics of each channel, each convolution its input; y is not needed.
    channels = [start + i * growth for i in range(num_layers)] + [bottleneck] * num_layers
    assert memory.kept - y.nbytes == sum(4 * (2 * count * pixels + 2 * count) for count in channels)


def test_gradients_and_batch_are_not_memory_of_a_step():
    step = variant("naive").step(SMALL)
    before = {name: parameter.grad for name, parameter in step.network.named_parameters()}
    result, memory = memory_of(step, CPU)
    assert memory.kept == result.nbytes
    assert all(parameter.grad is before[name] for name, parameter in step.network.named_parameters())


def test_a_second_step_has_the_gradients_of_the_first():
    step = variant("naive").step(SMALL)
    step.network.eval()  # running statistics do not change the outputs then
    first = observe(step)
    assert all(torch.equal(tensor, first[name]) for name, tensor in observe(step).items())


def test_variants_take_turns_and_every_second_round_goes_backwards(monkeypatch):
    steps = [variant("naive").step(SMALL) for _ in range(3)]
    seen = []

    def note(step, device):
        seen.append(steps.index(step))
        return float(len(seen))

    monkeypatch.setattr(measure, "seconds_of", note)
    assert paired_seconds(steps, rounds=3) == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]
    assert seen == [0, 1, 2, 2, 1, 0, 0, 1, 2]


# The rivals.


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize(("depth", "growth_rate"), [(10, 2), (16, 5), (40, 12)])
def test_torchvisions_network_is_the_same_function_with_the_same_parameters(depth, growth_rate, memory_efficient):
    ours = densenet_bc(depth, growth_rate, efficient=False)
    network = {"depth": depth, "growth_rate": growth_rate, "drop_rate": 0}
    theirs = torchvision_densenet(**network, memory_efficient=memory_efficient)
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1]
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(theirs(images), ours(images))
    if not memory_efficient:  # which updates running statistics again when it goes backward
        assert torch.equal(theirs.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_have_the_loss_and_the_gradients_of_naive(name):
    weights = draw_weights(variant("naive"), SMALL)
    expected, actual = (observe(variant(which).step(SMALL, weights)) for which in ("naive", name))
    names = [tensor for tensor in expected if tensor == "loss" or tensor.startswith("gradient of")]
    assert len(names) > 20
    for tensor in names:
        torch.testing.assert_close(actual[tensor], expected[tensor], msg=tensor)


def test_whole_layers_run_again_in_the_backward_pass_and_update_statistics_twice():
    network = checkpoint_whole_layers(densenet_bc(16, 2, efficient=False))
    calls = []
    network.features.denseblock1.denselayer2.conv2.register_forward_pre_hook(lambda *_: calls.append("layer"))
    network.features.transition1.conv.register_forward_pre_hook(lambda *_: calls.append("transition"))
    loss = network(torch.randn(2, 3, 8, 8)).sum()
    assert calls == ["layer", "transition"]
    loss.backward()
    assert sorted(calls) == ["layer", "layer", "transition", "transition"]
    updates = {name: int(b) for name, b in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert {n for n, count in updates.items() if count == 1} == {"features.norm_final.num_batches_tracked"}
    assert {count for count in updates.values()} == {1, 2}


def test_whole_layers_keep_less_than_single_bottlenecks():
    case = replace(SMALL, depth=40, growth_rate=8)
    kept = {name: memory_of_step(variant(name).step(case)).kept for name in ("naive", "checkpoint", RIVALS[2])}
    assert kept[RIVALS[2]] < kept["checkpoint"] < kept["naive"]


# The check of agreement.


def test_our_strategies_agree_in_fp64():
    agreement = agreement_in_fp64(variants(), SMALL)
    assert [difference.variant for difference in agreement.differences] == list(STRATEGIES[1:])
    assert agreement.differences[0].value == 0  # checkpoint gives the same bits
    agreement.require()


def test_a_strategy_that_updates_statistics_twice_is_caught_and_the_exit_code_is_1(monkeypatch, capsys):
    monkeypatch.setattr(recompute_module, "FrozenRunningStatistics", lambda norm: nullcontext())
    assert run_here("benchmark", *TINY) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        r"demo\.py benchmark: error: checkpoint does not agree with naive: features\.\S+\.norm1\.num_batches_tracked "
        r"differs by 1\.0e\+00 in fp64, batch 4, allowed is 1\.0e-09\n",
        output.err,
    )


def test_a_strategy_with_one_slightly_wrong_gradient_is_caught():
    def build(strategy, **network):
        network = densenet_bc(**network, efficient=False)
        if strategy == "buffer":
            network.features.transition1.norm.weight.register_hook(lambda gradient: gradient * (1 + 1e-6))
        return network

    agreement = agreement_in_fp64(variants(build), SMALL)
    assert [difference.value == 0 for difference in agreement.differences] == [True, False, True]
    with pytest.raises(
        RunError, match=r"buffer .* gradient of features\.transition1\.norm\.weight differs by 1\.0e-06"
    ):
        agreement.require()


def test_a_strategy_that_is_wrong_in_the_measured_precision_only_is_caught():
    class Wrong(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network
            self.load_state_dict = network.load_state_dict
            self.named_parameters, self.named_buffers = network.named_parameters, network.named_buffers

        def forward(self, images):
            return self.network(images if images.dtype == torch.float64 else images.flip(3))

    def build(strategy, **network):
        network = densenet_bc(**network, efficient=False)
        return Wrong(network) if strategy == "buffer" else network

    with pytest.raises(RunError, match=r"buffer does not agree with naive: the loss differs by \S+ in fp32, batch 4"):
        compare(variants(build), SMALL, rounds=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_lost_in_the_measured_precision_only_is_caught(precision):
    def build(strategy, **network):
        network = densenet_bc(**network, efficient=False)
        if strategy == "buffer":
            for weight in network.parameters():
                weight.register_hook(lambda gradient: gradient * (gradient.dtype == torch.float64))
        return network

    with pytest.raises(RunError, match=f"buffer .* the whole gradient differs by 1.0e.00 in {precision}, batch 4"):
        compare(variants(build), replace(SMALL, precision=precision), rounds=0)


def test_differences_are_relative_and_numbers_that_are_none_differ_infinitely():
    expected = {"loss": torch.tensor(2.0), "gradient of w": torch.tensor([3.0, 4.0]), "count": torch.tensor(1)}
    actual = {"loss": torch.tensor(2.5), "gradient of w": torch.tensor([3.0, 2.0]), "count": torch.tensor(1)}
    assert largest_difference("v", expected, actual).value == 2 / 4
    assert largest_difference("v", expected, actual).where == "gradient of w"
    assert gradient_difference("v", expected, actual).value == 2 / 5
    assert forward_difference("v", expected, actual).value == 0.5 / 2
    assert forward_difference("v", expected, actual | {"count": torch.tensor(2)}).value == 1
    actual["loss"] = torch.tensor(torch.nan)
    for compared in (largest_difference, forward_difference):
        assert compared("v", expected, actual).value == torch.inf
    assert largest_difference("v", expected, expected).value == 0


# Growth and the budget.


def test_growth_is_exact_on_a_polynomial_and_its_answers_are_maximal():
    def parabola(size):
        return 5 + 3 * size + 2 * size**2

    growth = fit_growth([(size, parabola(size)) for size in (2, 5, 7)], check=(11, parabola(11)))
    assert growth.error == pytest.approx(0, abs=1e-12)
    for limit in (parabola(20), parabola(21) - 1):
        assert growth.largest_within(limit + 1e-6, range(1, 1000)) == 20
    assert growth.largest_within(parabola(1) - 1, range(1, 1000)) is None
    assert growth.largest_within(1e12, range(1, 1000)) == 999
    assert fit_growth([(1, 10), (2, 20)], check=(3, 33)).error == pytest.approx(0.1)


def test_growth_never_promises_that_more_needs_less():
    growth = fit_growth([(1, 10), (2, 19), (3, 26)], check=(4, 31))
    assert growth.bytes_at(4) == pytest.approx(33)
    assert growth.largest_within(1000, range(1, 10_000)) == 142  # 26 + 7 * 139 = 999


@pytest.fixture
def small_measurements(monkeypatch):
    monkeypatch.setattr(budget, "MEASURED_IMAGES", 4)
    monkeypatch.setattr(budget, "FITTED_DEPTHS", (16, 22, 28))
    monkeypatch.setattr(budget, "CHECKED_DEPTH", 34)


@pytest.mark.usefixtures("small_measurements")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budget_agrees_with_measurements_that_the_fit_does_not_know(strategy):
    case = replace(SMALL, depth=22, growth_rate=4, image_size=16)
    fitting = budget.find_what_fits([variant(strategy)], case, budget=20e6)
    (answer,) = fitting.answers
    bytes_of = partial(budget.training_bytes, variant(strategy))
    assert abs(answer.by_batch.error) < 0.05
    assert abs(answer.by_depth.error) < 0.05
    assert answer.by_batch.bytes_at(32) == pytest.approx(bytes_of(replace(case, batch_size=32)), rel=0.1)
    assert answer.by_depth.bytes_at(52) == pytest.approx(bytes_of(replace(case, depth=52)), rel=0.1)
    batch, depth = answer.largest_batch, answer.largest_depth
    assert answer.by_batch.bytes_at(batch) <= 20e6 < answer.by_batch.bytes_at(batch + 1)
    assert answer.by_depth.bytes_at(depth) <= 20e6 < answer.by_depth.bytes_at(depth + 6)
    assert depth % 6 == 4


def test_state_of_training_is_weights_gradients_momentum_and_buffers():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    # Weights: 6 + 2 + 2 + 2 floats, three times. Buffers: mean and variance of two channels and one int64.
    assert budget.state_bytes(network) == 3 * 4 * 12 + (4 * 4 + 8)


@pytest.mark.usefixtures("small_measurements")
def test_budget_is_answered_in_words_and_as_csv(tmp_path, capsys):
    case = ["--depth=16", "--growth_rate=4", "--image_size=16"]
    assert run_here("benchmark", *case, "--budget_gb=0.01", f"--csv={tmp_path / 'a.csv'}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("What fits into 0.01 GB (10^9 bytes): DenseNet-BC L=16 k=4, batch 64 of 16x16, fp32")
    rows = [line.split() for line in lines[3 : 3 + len(STRATEGIES)]]
    assert [row[0] for row in rows] == list(STRATEGIES)
    with (tmp_path / "a.csv").open() as file:
        records = list(csv.DictReader(file))
    for row, record in zip(rows, records, strict=True):
        assert (row[4], row[6]) == (record["largest_batch"], record["largest_depth"])
    assert any(line.startswith("L=16 with batches of 64 fits with ") for line in lines)
    best = max(int(record["largest_batch"]) for record in records)
    assert any(line.startswith(f"The largest batch for L=16 is {best}, with ") for line in lines)
    assert any("CUDA context" in line for line in lines)
    assert any("this is an estimate" in line for line in lines)


@pytest.mark.usefixtures("small_measurements")
def test_a_budget_that_is_too_small_for_anything_is_said_to_be_so(capsys):
    assert run_here("benchmark", *TINY, "--budget_gb=1e-6") == 0
    output = capsys.readouterr().out
    assert output.count("none") == 2 * len(STRATEGIES) + 1
    assert "fits with none of them." in output


# The command.


def rows_of(output):
    return [
        re.split(r"\s{2,}", line) for line in output.splitlines() if re.search(r"  (channels_last|contiguous)  ", line)
    ]


def test_a_tiny_run_prints_a_row_for_each_variant_and_writes_the_same_to_csv(tmp_path, capsys):
    assert run_here("benchmark", *TINY, "--rounds=1", f"--csv={tmp_path / 'table.csv'}") == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    names = ["naive", "naive", *STRATEGIES[1:], *RIVALS]
    assert [row[0].removesuffix(" *") for row in rows] == names
    assert [row[0] for row in rows if row[0].endswith(" *")] == [f"{name} *" for name in RIVALS[1:]]
    assert [row[1] for row in rows] == ["channels_last", "contiguous", *["channels_last"] * (len(rows) - 2)]
    assert [row[7] for row in rows[:2]].count("1.000") >= 1
    assert output.startswith("DenseNet-BC L=10 k=2, batch 4 of 8x8, 786 parameters\n")
    assert re.search(
        r"\n  fp64, batch 4: checkpoint 0\.0e\+00, buffer \S+, buffer_fast \S+ \(allowed 1\.0e-09\)\n", output
    )
    assert re.search(
        r", 1 CPU thread, fp32; Python 3\S+, torch \S+, torchvision \S+; batch 4 of 8x8, 1 round$",
        output.splitlines()[-1],
    )
    with (tmp_path / "table.csv").open() as file:
        records = list(csv.DictReader(file))
    assert [record["variant"] for record in records] == names
    for row, record in zip(rows, records, strict=True):
        assert row[2] == f"{int(record['peak_bytes']) / 1e6:.1f}"
        assert row[5] == f"{float(record['seconds_median']):.3f}"
    assert {record["batch_size"] for record in records} == {"4"}
    assert [record["running_statistics_updates"] for record in records][-3:] == ["1", "2", "2"]


def test_ratios_refer_to_the_faster_naive_within_a_round(monkeypatch):
    seconds = {0: [2.0, 4.0], 1: [1.0, 2.0]}
    times = [seconds.get(number, [3.0, 1.0]) for number in range(len(variants()))]
    monkeypatch.setattr("train.benchmark.comparison.paired_seconds", lambda steps, rounds: times)
    result = compare(variants(), SMALL, rounds=2)
    assert result.baseline.variant.memory_format == "contiguous"
    assert [row.ratios for row in result.rows[:3]] == [[2, 2], [1, 1], [3, 0.5]]
    assert "to naive contiguous, the faster of the two" in result.as_text()
    assert rows_of(result.as_text())[2][7:] == ["1.750", "(0.500 - 3.000)"]


@pytest.mark.parametrize("flags", [["--precision=bf16", "--memory_format=contiguous"], ["--drop_rate=0.2"]])
def test_other_cases_run_without_times(flags, capsys):
    assert run_here("benchmark", *TINY, *flags, "--rounds=0") == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert len(rows) == len(variants())
    assert {len(row) for row in rows} == {5}
    assert output.count("\n  bf16, batch 4, ") == (2 if "--precision=bf16" in flags else 0)
    assert "\n  fp32, batch 4, " not in output  # with dropout there is nothing to compare


REFUSED = [
    (["benchmrk"], "unknown command 'benchmrk'; did you mean benchmark?"),
    (["benchmark", "fast"], "stray word 'fast': values belong behind a flag"),
    (["benchmark", "--save=s"], "unknown flag '--save'"),
    (["benchmark", "--depth=43"], "--depth is '43', but must be a whole number, 6m + 4 with m >= 1"),
    (["benchmark", "--depths=40,43"], "--depths is '43', but must be a whole number, 6m + 4 with m >= 1"),
    (["benchmark", "--depths=40,"], "--depths is ''"),
    (["benchmark", "--image_size=4"], "--image_size is '4', but must be a whole number, 8 or more"),
    (["benchmark", "--precision=fp8"], "--precision is 'fp8', but must be fp32 | bf16 | fp16"),
    (["benchmark", "--memory_format=nchw"], "--memory_format is 'nchw'"),
    (["benchmark", "--threads=0"], "--threads is '0'"),
    (["benchmark", "--rounds=-1"], "--rounds is '-1'"),
    (["benchmark", "--budget_gb=0"], "--budget_gb is '0', but must be a number, above 0"),
    (["benchmark", "--plot=p.pdf"], "--plot is 'p.pdf', but must be a file name that ends in .png"),
    (["benchmark", "--plot=nowhere/p.png"], "--plot nowhere/p.png cannot be written: No such file or directory"),
    (["benchmark", "--csv=table"], "--csv is 'table', but must be a file name that ends in .csv"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_line_is_one_message_with_exit_code_2_and_no_work(words, message, tmp_path):
    result = run_apart(*words, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert re.fullmatch(r"demo\.py( benchmark)?: error: [^\n]+\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "name"), [("plot", "p.png"), ("csv", "t.csv")])
def test_a_file_that_exists_is_refused_before_torch_is_imported(flag, name, tmp_path):
    (tmp_path / name).write_text("mine")
    program = (
        "import sys, demo\n"
        f"try: demo.main(['benchmark', '--{flag}={tmp_path / name}'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "sys.exit(code if 'torch' not in sys.modules and 'matplotlib' not in sys.modules else 99)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert re.fullmatch(
        rf"demo\.py benchmark: error: --{flag} \S+ exists already; choose another name\n", result.stderr
    )
    assert (tmp_path / name).read_text() == "mine"


def test_fp16_on_a_cpu_and_compiling_without_a_compiler_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_here("benchmark", *TINY, "--precision=fp16") == 2
    assert "--precision is 'fp16', but that needs a GPU; on a CPU it must be fp32 | bf16" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert run_here("benchmark", *TINY, "--compile") == 2
    assert "--compile is True, but needs a C++ compiler" in capsys.readouterr().err


def test_a_lack_of_memory_is_one_line():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 1 byte")):
        with pytest.raises(RunError, match="naive at L=10 with batches of 4 does not fit"), one_line("naive", SMALL):
            raise error
    with pytest.raises(RuntimeError, match="another fault"), one_line("naive", SMALL):
        raise RuntimeError("another fault")
    with pytest.raises(UserError, match="fp16"):
        replace(SMALL, precision="fp16")


def test_an_interrupted_benchmark_speaks_of_no_run_to_resume(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("train.benchmark.comparison.compare", interrupt)
    assert run_here("benchmark", *TINY) == 130
    assert capsys.readouterr().err == "demo.py benchmark: stopped by SIGINT\n"


# The picture.


def test_plot_is_a_png_of_the_documented_size_after_the_table(tmp_path, capsys):
    path = tmp_path / "memory.png"
    assert run_here("benchmark", *TINY, "--rounds=0", f"--plot={path}", "--depths=22,10,10") == 0
    output = capsys.readouterr().out
    assert len(rows_of(output)) == len(variants())
    header = next(line for line in output.splitlines() if line.startswith("peak MB, batch 4"))
    assert header.split()[-2:] == ["L=10", "L=22"]
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (960, 1440)
    assert np.unique(picture.reshape(-1, picture.shape[2]), axis=0).shape[0] > 50


def test_measurements_by_depth_are_those_of_single_steps_and_linear_in_the_batch():
    measured = measure_by_depth(variants(), replace(SMALL, batch_size=100), depths=[16, 10], rounds=0)
    assert (measured.depths, measured.case.batch_size) == ([10, 16], 16)
    assert list(measured.peaks) == ["naive", *STRATEGIES[1:], *RIVALS]
    for depth, peak in zip(measured.depths, measured.peaks["checkpoint"], strict=True):
        step = variant("checkpoint").step(replace(SMALL, depth=depth, batch_size=16))
        assert memory_of_step(step).peak == peak
    assert measured.nonlinearity.keys() == measured.peaks.keys()
    assert max(measured.nonlinearity.values()) < 0.1
    assert measured.seconds == {}
    # Products of forward and of both gradients, but for that of the images: first convolution; layers of 1x1 and 3x3;
    # transitions to half of the channels; classifier. A multiplication and an addition count as two.
    k, pixels = SMALL.growth_rate, SMALL.image_size**2
    for m, flops in zip((1, 2), measured.flops, strict=True):
        channels, products = 2 * k, 2 * 3 * 2 * k * 9 * pixels
        for block in range(3):
            of_layers = sum((channels + i * k) * 4 * k + 4 * k * k * 9 for i in range(m)) * (pixels >> 2 * block)
            channels += m * k
            of_transition = channels * (channels // 2) * (pixels >> 2 * block) if block < 2 else channels * CLASSES
            channels = channels // 2 if block < 2 else channels
            products += 3 * (of_layers + of_transition)
        assert flops == 2 * 16 * products


def test_time_by_depth_stands_in_seconds_and_for_each_gflop():
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


def test_labels_are_moved_apart_and_not_further():
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    assert spread([0.1, 0.5, 0.5], 0.1) == pytest.approx([0.1, 0.45, 0.55])
    assert spread([0.50, 0.52, 0.58], 0.1) == pytest.approx([0.433333, 0.533333, 0.633333], abs=1e-5)


def test_columns_are_aligned():
    assert aligned([["", "a", "bb"], ["name", "1.0", "2"]]) == "        a  bb\nname  1.0   2"


@pytest.mark.gpu
def test_memory_on_a_gpu_is_counted_by_its_allocator():
    device = torch.device("cuda", 0)
    before = torch.zeros(1024, device=device)

    def function():
        temporary = torch.zeros(1024, device=device)
        del temporary
        return before + 1

    result, memory = memory_of(function, device)
    assert (memory.peak, memory.kept) == (result.nbytes, result.nbytes)
    assert memory.reserved >= 2 * result.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_tiny_run_on_a_gpu_has_all_rows_and_what_the_allocator_holds(precision, capsys):
    assert run_here("benchmark", *TINY, "--rounds=1", f"--precision={precision}") == 0
    output = capsys.readouterr().out
    assert "reserved MB" in output
    assert len(rows_of(output)) == len(variants())
