"""Steps in CUDA graphs and the time of the host, with a stand-in where there is no GPU."""

from dataclasses import replace

import pytest
import torch

from commands.benchmark import comparison, measure
from commands.benchmark.comparison import compare
from commands.benchmark.measure import host_seconds_of
from commands.benchmark.on_gpu import CapturedStep, capture, graphs_of, host_seconds
from models import STRATEGIES
from tests.support.application import run_here
from tests.support.benchmark_cases import BASELINES, CPU, SMALL, TINY, rows_of, variant, variants
from train.cuda_graph import CaptureError


class StandIn:
    """Captures a function by keeping it, unless it is one of those to refuse.

    Attributes:
        refused: Positions of the captures that fail.
        seen: What was asked for.
    """

    def __init__(self, refused=()):
        self.refused, self.seen, self.count = refused, [], 0

    def warm_up(self, function):
        self.seen.append("warm up")
        function()

    def capture(self, function):
        self.count += 1
        if self.count - 1 in self.refused:
            raise CaptureError("operation not permitted\nwhen stream is capturing")
        self.seen.append("capture")
        return lambda: (self.seen.append("replay"), function())[0]


def test_a_replay_is_the_step_itself():
    graphs, step = StandIn(), variant("naive").step(SMALL)
    captured = capture(variant("naive"), step, graphs)
    assert isinstance(captured, CapturedStep)
    assert (graphs.seen, captured.device) == (["warm up", "capture"], CPU)
    step()
    expected = [parameter.grad.clone() for parameter in step.network.parameters()]
    step.network.zero_grad(set_to_none=False)
    captured()
    for parameter, grad in zip(step.network.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert graphs.seen == ["warm up", "capture", "replay"]


@pytest.mark.parametrize("fault", [CaptureError("operation not permitted\nmore"), torch.OutOfMemoryError("memory")])
def test_a_step_that_cannot_be_captured_is_one_line(fault, capsys):
    graphs = StandIn()
    graphs.capture = graphs.warm_up
    graphs.warm_up = lambda function: (_ for _ in ()).throw(fault)
    assert capture(variant("buffer"), variant("buffer").step(SMALL), graphs) is None
    reason = str(fault).split("\n")[0]
    expected = f"warning: buffer channels_last has no row for a CUDA graph: {reason}\n"
    assert capsys.readouterr().err.endswith(expected)


def test_rows_of_graphs_follow_and_refer_to_naive_in_a_graph(monkeypatch, capsys):
    graphs = StandIn(refused=[2])  # checkpoint
    monkeypatch.setattr(comparison, "graphs_of", lambda device: graphs)
    monkeypatch.setattr(comparison, "host_seconds", lambda variant, step, case, rounds: [0.25] * rounds)
    num_eager = len(variants())
    # Naive in a graph takes 2 and 4 seconds in its two memory formats, all others 3; without a graph, each takes 10.
    of_graphs = [[2.0], [4.0], *[[3.0]] * (num_eager - 3)]
    monkeypatch.setattr(comparison, "paired_seconds", lambda steps, rounds: [[10.0]] * num_eager + of_graphs + [[5.0]])
    result = compare(variants(), SMALL, rounds=1)
    assert "has no row for a CUDA graph: operation not permitted\n" in capsys.readouterr().err
    graphed = [row for row in result.rows if row.in_graph]
    others = [name for name in (*STRATEGIES, *BASELINES) if name not in ("naive", "checkpoint")]
    assert [row.name for row in graphed] == [f"{name}, CUDA graph" for name in ("naive", "naive", *others)]
    assert result.rows[num_eager:] == graphed
    assert [row.ratios for row in result.rows[:num_eager]] == [[1.0]] * num_eager
    assert [row.ratios for row in graphed] == [[1.0], [2.0], *[[1.5]] * (num_eager - 3)]
    text = result.as_text()
    assert "its ratio is to the faster naive in a CUDA graph\n" in text
    assert [row[-1] for row in rows_of(text)] == ["0.250"] * num_eager + ["-"] * len(graphed)
    assert text.count("host s") == 1
    assert "buffer takes 2.000 (2.000 - 2.000) times that\n" in text


def test_without_a_gpu_there_are_no_graphs_and_no_time_of_the_host():
    assert graphs_of(CPU) is None
    assert host_seconds(variant("naive"), variant("naive").step(SMALL), SMALL, rounds=2) == []


def test_a_compiled_network_is_not_compiled_again_for_the_time_of_the_host():
    case = replace(SMALL, device=torch.device("cuda", 0))
    assert host_seconds(replace(variant("naive"), is_compiled=True), None, case, rounds=2) == []


def test_the_time_of_the_host_ends_before_the_device_is_waited_for(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "_wait_for", lambda device: seen.append("wait"))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(len(seen)))
    assert host_seconds_of(lambda: seen.append("run"), CPU) == 1
    assert seen == ["wait", "run"]


@pytest.mark.gpu
def test_a_gpu_has_rows_in_graphs_and_a_time_of_the_host(capsys):
    assert run_here("benchmark", *TINY, "--rounds=1") == 0
    output = capsys.readouterr().out
    assert "host s" in output
    names = [row[0].removesuffix(" *") for row in rows_of(output)]
    assert [name for name in names if name.endswith(", CUDA graph")] == [
        f"{name}, CUDA graph" for name in ("naive", *STRATEGIES, *BASELINES)
    ]
