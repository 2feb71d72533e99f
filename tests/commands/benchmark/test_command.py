"""The benchmark as a command: its table, and the lines that it refuses."""

import csv
import re
import signal
import subprocess
import sys
import typing
from types import SimpleNamespace

import pytest
import torch

from commands.benchmark.comparison import Row, compare, exceptions
from commands.benchmark.gpus import GPUS
from commands.benchmark.measure import Memory, memory_errors_as_one_line
from commands.benchmark.settings import GpuName
from commands.benchmark.variants import build_ours
from commands.tables import aligned
from models import STRATEGIES
from tests.support.application import ROOT, run_apart, run_here
from tests.support.benchmark_cases import BASELINES, SMALL, TINY, rows_of, small, variants
from train.errors import RunError


def test_a_tiny_run_prints_a_row_for_each_variant_and_writes_the_same_to_csv(tmp_path, capsys):
    assert run_here("benchmark", *TINY, "--rounds=1", f"--csv={tmp_path / 'table.csv'}") == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    names = ["naive", "naive", *STRATEGIES[1:], *BASELINES]
    assert [row[0].removesuffix(" *") for row in rows] == names
    assert [row[0] for row in rows if row[0].endswith(" *")] == [f"{name} *" for name in BASELINES[1:]]
    assert [row[1] for row in rows] == ["channels_last", "contiguous", *["channels_last"] * (len(rows) - 2)]
    assert [row[8] for row in rows[:2]].count("1.000") >= 1
    assert output.startswith("DenseNet-BC (L=10, k=2), batch 4 of 8x8, 786 parameters\n")
    buffers = r"buffer \S+, buffer_fast \S+, buffer_small \S+"
    assert re.search(rf"\n  fp64, batch 4: checkpoint 0\.0e\+00, {buffers} \(allowed 1\.0e-09\)\n", output)
    assert re.search(
        r", 1 CPU thread, fp32; Python 3\S+, torch \S+, torchvision \S+; batch 4 of 8x8, 1 round$",
        output.splitlines()[-1],
    )
    assert "counted and not measured, on a GPU of compute capability 9.0\n" in output
    with (tmp_path / "table.csv").open() as file:
        records = list(csv.DictReader(file))
    assert [record["variant"] for record in records] == names
    pattern = r"\nnaive's convolutions alone take (\S+) s \(.*\), .*; buffer takes (\S+) \(.*\) times that\n"
    alone, times = re.search(pattern, output).groups()
    assert alone == f"{float(records[0]['convolutions_seconds_median']):.3f}"
    assert float(times) == pytest.approx(
        float(records[3]["seconds_median"]) / float(records[0]["convolutions_seconds_median"]), abs=0.001
    )
    for row, record in zip(rows, records, strict=True):
        assert row[2] == f"{int(record['peak_bytes']) / 1e6:.1f}"
        assert row[5] == f"{int(record['bytes_moved']) / 1e9:.2f}"
        assert row[6] == f"{float(record['seconds_median']):.3f}"
    assert {record["batch_size"] for record in records} == {"4"}
    assert [record["running_statistics_updates"] for record in records][-3:] == ["1", "2", "2"]


def stub(name, peak, ratios=()):
    """A row of this name."""
    return Row(SimpleNamespace(name=name), Memory(peak=peak, kept=0), 1, ratios=[*ratios])


def test_rows_that_take_less_than_the_default_are_named_with_the_smallest_first():
    rows = [stub("naive", 51_000_000), stub("naive", 50_960_000), stub("checkpoint", 23_040_000)]
    rows += [stub("buffer", 65_000_000), stub("buffer_fast", 65_000_000), stub("torchvision", 70_000_000)]
    assert exceptions(rows) == [
        "at this size these take less memory than buffer (65.0 MB): checkpoint (23.0 MB), naive (51.0 MB)"
    ]
    assert exceptions([stub("naive", 9), stub("buffer", 9), stub("buffer_small", 8)]) == []


@pytest.mark.parametrize(("ratios", "line"), [([0.5, 1.12, 3], "1.12"), ([0.5, 1, 3], None), ([], None)])
def test_a_default_that_is_slower_than_naive_is_said(ratios, line):
    expected = [f"at this size buffer takes {line} times the time of naive"] if line else []
    assert exceptions([stub("naive", 9), stub("buffer", 5, ratios)]) == expected


def test_the_table_is_followed_by_what_it_shows_of_the_default(capsys):
    """Weights of many channels and one small image: what a step needs are gradients of weights."""
    assert run_here("benchmark", "--depth=10", "--growth_rate=8", "--batch_size=2", "--image_size=8", "--rounds=0") == 0
    output = capsys.readouterr().out
    peaks = {row[0].removesuffix(" *"): float(row[2]) for row in rows_of(output)}
    line = next(line for line in output.splitlines() if line.startswith("at this size"))
    named = dict(re.findall(r"(\w[\w ]*) \(([\d.]+) MB\)", line.partition(": ")[2]))
    assert named
    assert {name: float(peak) for name, peak in named.items()} == {name: peaks[name] for name in named}
    assert all(peak <= peaks["buffer"] for peak in map(float, named.values()))
    assert all(peak >= peaks["buffer"] for name, peak in peaks.items() if name not in named)


def test_ratios_refer_to_the_faster_naive_within_a_round(monkeypatch):
    seconds = {0: [2.0, 4.0], 1: [1.0, 2.0]}
    times = [seconds.get(number, [3.0, 1.0]) for number in range(len(variants()) + 1)]  # convolutions come last
    monkeypatch.setattr("commands.benchmark.comparison.paired_seconds", lambda steps, rounds: times)
    result = compare(variants(), SMALL, rounds=2)
    assert result.baseline.variant.memory_format == "contiguous"
    assert [row.ratios for row in result.rows[:3]] == [[2, 2], [1, 1], [3, 0.5]]
    assert "to naive contiguous, the faster of the two" in result.as_text()
    assert rows_of(result.as_text())[2][8:] == ["1.750", "(0.500 - 3.000)"]


@pytest.mark.parametrize("flags", [["--precision=bf16", "--memory_format=contiguous"], ["--drop_rate=0.2"]])
def test_other_cases_run_without_times(flags, capsys):
    assert run_here("benchmark", *TINY, *flags, "--rounds=0") == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert len(rows) == len(variants())
    assert {len(row) for row in rows} == {6}
    assert output.count("\n  bf16, batch 4, ") == (2 if "--precision=bf16" in flags else 0)
    assert "\n  fp32, batch 4, " not in output  # with dropout there is nothing to compare


def test_a_plain_network_has_no_row_of_torchvision_and_a_line_says_so(capsys):
    plain = ["--network=densenet", "--depth=7", *TINY[1:]]
    assert run_here("benchmark", *plain, "--rounds=0") == 0
    output = capsys.readouterr().out
    assert output.startswith("DenseNet (L=7, k=2), batch 4 of 8x8, ")
    names = ["naive", "naive", *STRATEGIES[1:], f"{BASELINES[2]} *"]
    assert [row[0] for row in rows_of(output)] == names
    assert "\ntorchvision has no row: its DenseNet always has bottlenecks" in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("densenet_bc", 100, 12, 32)),
        (["--network=densenet", "--depth=40"], ("densenet", 40, 12, 32)),
        (["--network=densenet161"], ("densenet161", 161, 48, 224)),
        (["--network=densenet121", "--growth_rate=32", "--image_size=64"], ("densenet121", 121, 32, 64)),
    ],
)
def test_what_is_measured_is_the_network_that_the_line_names(words, expected, monkeypatch):
    class Seen(Exception):
        pass

    def look(variants, case, *, rounds):
        network = case.network
        raise Seen(network.network, network.depth, network.growth_rate, network.image_size)

    monkeypatch.setattr("commands.benchmark.report.compare", look)
    with pytest.raises(Seen) as seen:
        run_here("benchmark", *words)
    assert seen.value.args == expected


def test_dropout_is_where_torchvision_has_it():
    network = build_ours("naive", small(drop_rate=0.2).network)
    layers = [module for module in network.modules() if hasattr(module, "bottleneck_drop_rate")]
    assert {(layer.drop_rate, layer.bottleneck_drop_rate) for layer in layers} == {(0.2, 0)}


REFUSED = [
    (["benchmrk"], "unknown command 'benchmrk'; did you mean benchmark?"),
    (["benchmark", "fast"], "stray word 'fast': values must follow a flag"),
    (["benchmark", "--save=s"], "unknown flag '--save'"),
    (["benchmark", "--depth=43"], "--depth is '43', but must be a whole number, 6m + 4 with m >= 1"),
    (["benchmark", "--plot=p.png", "--depths=40,43"], "--depths is '43', but must be a whole number, 6m + 4 with"),
    (["benchmark", "--plot=p.png", "--depths=40,"], "--depths is ''"),
    (["benchmark", "--depths=40"], "--depths needs --plot, the file"),
    (["benchmark", "--network=densenet", "--depths=41", "--plot=p.png"], "--depths is '41', but must be a whole"),
    (["benchmark", "--network=densenet121", "--plot=p.png"], "--plot is for memory against depth, but densenet121"),
    (["benchmark", "--network=densenet121", "--depths=40"], "--depths is for memory against depth, but"),
    (["benchmark", "--network=densenet", "--depth=12"], "--depth is '12', but must be a whole number, 3m + 4"),
    (["benchmark", "--network=densenet121", "--depth=99"], "--depth is 99, but must be 121 for --network densenet121"),
    (["benchmark", "--network=densenet121", "--image_size=32"], "64 pixels or more, but --image_size is 32"),
    (["benchmark", "--network=densenet12"], "--network is 'densenet12', but must be densenet_bc | densenet | "),
    (["benchmark", "--image_size=4"], "--image_size is '4', but must be a whole number, 8 or more"),
    (["benchmark", "--precision=fp8"], "--precision is 'fp8', but must be fp32 | tf32 | bf16 | fp16"),
    (["benchmark", "--memory_format=nchw"], "--memory_format is 'nchw'"),
    (["benchmark", "--threads=0"], "--threads is '0'"),
    (["benchmark", "--rounds=-1"], "--rounds is '-1'"),
    (["benchmark", "--budget_gb=0"], "--budget_gb is '0', but must be a number, above 0"),
    (["benchmark", "--plot=p.pdf"], "--plot is 'p.pdf', but must be a file name that ends in .png"),
    (["benchmark", "--plot=nowhere/p.png"], "--plot nowhere/p.png cannot be written: No such file or directory"),
    (["benchmark", "--simulate=p100"], "--simulate is 'p100', but must be h100 | a100 | 4090 | 3090 | t4, or None"),
    (["benchmark", "--simulate=h100", "--rounds=3"], "--rounds is 3, but --simulate measures nothing; leave it out"),
    (["benchmark", "--simulate=h100", "--budget_gb=8"], "--budget_gb is 8.0, but --simulate measures nothing"),
    (["benchmark", "--simulate=h100", "--plot=p.png"], "--plot is p.png, but --simulate measures nothing"),
    (["benchmark", "--simulate=h100", "--what=images"], "--simulate is h100, but --what images measures no network"),
    (["benchmark", "--simulate=t4", "--precision=bf16"], "--precision is 'bf16', but a Tesla T4 does not have it; it"),
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


def test_precisions_of_a_gpu_on_a_cpu_and_compiling_without_a_compiler_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_here("benchmark", *TINY, "--precision=fp16") == 2
    assert "--precision is 'fp16', but that needs a GPU; on a CPU it must be fp32 | bf16" in capsys.readouterr().err
    assert run_here("benchmark", *TINY, "--precision=tf32") == 2
    assert "--precision is 'tf32', but that needs a GPU of compute capability 8.0" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert run_here("benchmark", *TINY, "--compile") == 2
    assert "--compile is True, but needs a C++ compiler" in capsys.readouterr().err


def test_a_lack_of_memory_is_one_line():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 1 byte")):
        with (
            pytest.raises(RunError, match="naive at L=10 with batches of 4 does not fit"),
            memory_errors_as_one_line("naive", SMALL),
        ):
            raise error
    with pytest.raises(RuntimeError, match="another fault"), memory_errors_as_one_line("naive", SMALL):
        raise RuntimeError("another fault")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_simulation_predicts_all_strategies_and_writes_them_to_csv(precision, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [*TINY, "--simulate=t4", f"--precision={precision}", f"--csv={tmp_path / 'p.csv'}"]
    assert run_here("benchmark", *words) == 0
    output = capsys.readouterr().out
    title = f"PREDICTION, not measured: DenseNet-BC (L=10, k=2), batch 4 of 8x8, {precision}, on an NVIDIA Tesla T4\n"
    assert output.startswith(title)
    content = (tmp_path / "p.csv").read_text()
    assert content.startswith("variant,gb_moved,launches,peak_mb,ms,ms_graph,ms_low,ms_high\n")
    records = list(csv.DictReader(content.splitlines()))
    assert [record["variant"] for record in records] == [*STRATEGIES, *BASELINES]
    for record in records:
        numbers = {name: float(value) for name, value in record.items() if name != "variant"}
        assert 0 < numbers["ms_graph"] < numbers["ms"]
        assert numbers["ms_low"] <= 0.651 * numbers["ms"]
        assert numbers["ms_high"] >= 1.349 * numbers["ms"]
        row = next(
            re.split(r"\s{2,}", line) for line in output.splitlines() if line.startswith(record["variant"] + "  ")
        )
        assert row[1:5] == [f"{numbers['gb_moved']:.2f}", record["launches"], row[3], f"{numbers['ms']:.1f}"]
        assert float(row[3]) == pytest.approx(numbers["peak_mb"], abs=0.051)
    peaks = {record["variant"]: record["peak_mb"] for record in records}
    assert peaks["naive"] == peaks["torchvision"]


def test_all_gpus_that_can_be_named_are_known():
    assert set(typing.get_args(GpuName)) == GPUS.keys()


def test_an_interrupted_benchmark_speaks_of_no_run_to_resume(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("commands.benchmark.report.compare", interrupt)
    assert run_here("benchmark", *TINY) == 130
    assert capsys.readouterr().err == "demo.py benchmark: stopped by SIGINT\n"


def test_columns_are_aligned():
    assert aligned([["", "a", "bb"], ["name", "1.0", "2"]]) == "        a  bb\nname  1.0   2"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_tiny_run_on_a_gpu_has_all_rows_and_what_the_allocator_holds(precision, capsys):
    assert run_here("benchmark", *TINY, "--rounds=1", f"--precision={precision}") == 0
    output = capsys.readouterr().out
    assert "reserved MB" in output
    assert len(rows_of(output)) == len(variants())
