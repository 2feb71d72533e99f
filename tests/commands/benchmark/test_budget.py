"""What fits into a memory: the extrapolation, and how it is told."""

import csv
import re
from dataclasses import replace
from functools import partial

import pytest
from numpy.polynomial import Polynomial
from torch import nn

from commands.benchmark import budget, extrapolation
from commands.benchmark.growth import Growth, fit_growth
from models import STRATEGIES
from models.buffer import rows
from tests.support.application import run_here
from tests.support.benchmark_cases import SMALL, TINY, variant


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


def test_a_fit_that_promises_too_much_is_made_again_with_its_check_and_a_cautious_one_stays():
    bent_up = fit_growth([(1, 10), (2, 20)], check=(3, 36))
    assert bent_up.error == pytest.approx(0.2)
    assert [bent_up.bytes_at(size) for size in (2, 3, 4)] == pytest.approx([20, 36, 52])
    bent_down = fit_growth([(1, 10), (2, 20)], check=(3, 24))
    assert bent_down.error == pytest.approx(-0.2)
    assert [bent_down.bytes_at(size) for size in (2, 3, 4)] == pytest.approx([20, 30, 40])
    assert bent_up.is_uncertain
    assert bent_down.is_uncertain
    assert not fit_growth([(1, 10), (2, 20)], check=(3, 32)).is_uncertain


def test_a_known_part_is_not_fitted_and_bends_what_is_a_line_without_it():
    known = Polynomial([0, 0, 5])
    points = [(size, known(size) + value) for size, value in ((1, 100), (2, 190), (3, 270), (4, 340))]
    growth = fit_growth(points[:3], check=points[3], known=known)
    assert growth.bytes_at(10) == pytest.approx(5 * 100 + 270 + 80 * 7)
    assert growth.error == pytest.approx((340 - 350) / (350 + 5 * 16))


@pytest.fixture
def small_measurements(monkeypatch):
    monkeypatch.setattr(extrapolation, "MEASURED_BYTES", 4e6)
    monkeypatch.setattr(extrapolation, "LAYERS_BETWEEN_DEPTHS", 6)


@pytest.mark.usefixtures("small_measurements")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budget_agrees_with_measurements_that_the_fit_does_not_know(strategy):
    case = replace(SMALL, depth=22, growth_rate=4, image_size=16)
    fitting = budget.find_what_fits([variant(strategy)], case, budget=20e6)
    (answer,) = fitting.answers
    bytes_of = partial(extrapolation.training_bytes, variant(strategy))
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
    assert extrapolation.state_bytes(network) == 3 * 4 * 12 + (4 * 4 + 8)


@pytest.mark.usefixtures("small_measurements")
def test_budget_is_answered_in_words_and_as_csv(tmp_path, capsys):
    case = ["--depth=16", "--growth_rate=4", "--image_size=16"]
    assert run_here("benchmark", *case, "--budget_gb=0.01", f"--csv={tmp_path / 'a.csv'}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("What fits into 0.01 GB (10^9 bytes): DenseNet-BC (L=16, k=4), batch 64 of 16x16, fp32")
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


def line(slope, error=0.0):
    return Growth(Polynomial([0, slope]), error, 8)


def told(**answers):
    """What is said of a budget of 1 GB, with the answers of strategies."""
    found = [budget.Answer(strategy, *answer) for strategy, answer in answers.items()]
    return budget.Fitting(SMALL, 1e9, found).as_text()


def test_an_answer_whose_fit_misses_its_check_says_no_more_than_is_known():
    text = told(naive=(line(1e7), 1000, line(1e6), 1000), buffer=(line(1e6, -0.36), 2000, line(1e5, 0.2), 4000))
    assert "The largest batch for L=10 is at least 2,000, with buffer." in text
    assert "The deepest network with batches of 4 has depth about 4,000, with buffer." in text
    assert "buffer: at batch 8, 36% less was measured than the fit says, so that more may fit." in text
    assert "buffer: at depth 8, 20% more was measured than the fit says, so that less may fit." in text
    assert "naive: at" not in text
    sure = told(naive=(line(1e7, 0.1), 1000, line(1e6, -0.1), 1000))
    assert "is 1,000, with naive." in sure
    assert "may fit" not in sure


@pytest.mark.parametrize("strategy", ["buffer", "buffer_fast"])
def test_batches_are_measured_where_chunks_of_the_buffer_have_reached_their_last_size(strategy, monkeypatch):
    monkeypatch.setattr(rows, "CPU_CHUNK_BYTES", 2**17)  # the buffer is as large as three of them at 96 images
    case = replace(SMALL, depth=16, growth_rate=4, image_size=16)
    growth = extrapolation.growth_with_batch(variant(strategy), case, budget=40e6)
    measured = extrapolation.training_bytes(variant(strategy), replace(case, batch_size=400))
    assert growth.bytes_at(400) == pytest.approx(measured, rel=0.05)


def test_of_the_networks_for_imagenet_those_that_fit_are_named(monkeypatch):
    case = replace(SMALL, network="densenet169", depth=169, growth_rate=32, image_size=64)
    monkeypatch.setattr(budget, "growth_with_batch", lambda variant, case, budget: line(1e6 * case.depth))
    fitting = budget.find_what_fits([variant("naive")], case, budget=4 * 170e6)
    assert fitting.answers[0].networks == ("densenet121", "densenet169", "densenet161")
    text = fitting.as_text()
    assert re.search(r"\nnaive .* 4 +121, 169, 161\n", text)
    assert "densenet169 with batches of 4 fits with naive." in text
    assert "With naive and batches of 4 fit densenet121, densenet169, densenet161." in text
    assert "deepest" not in text
    (record,) = csv.DictReader(fitting.as_csv().decode().splitlines())
    assert (record["networks"], record["largest_depth"]) == ("densenet121 densenet169 densenet161", "")
