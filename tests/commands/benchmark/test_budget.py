"""The sizes that fit into a memory: the search, and the words of its answers."""

import csv
import re
from dataclasses import replace

import pytest

from commands.benchmark import budget
from commands.benchmark.budget import Answer, Fitting, find_what_fits, largest_that_fits
from commands.benchmark.count import TrainingBytes, state_bytes, training_bytes
from commands.benchmark.measure import peak_of_step
from models import STRATEGIES
from tests.support.application import run_here
from tests.support.benchmark_cases import SMALL, TINY, small, variant

GROWTHS = {
    "proportional": lambda size: 7 * size,
    "with a fixed part": lambda size: 1000 + 3 * size,
    "quadratic": lambda size: 50 + 3 * size + size**2,
    "bent": lambda size: max(2000 + 2 * size, 5 * size),
    "in steps": lambda size: 100 * (size // 10) + size,
}


@pytest.mark.parametrize("bytes_of", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("sizes", [range(1, 1001), range(10, 1000, 6)])
def test_the_search_finds_the_largest_size_that_fits(bytes_of, sizes):
    for limit in (1, 60, 1500, 3333, 4999.5, 10_000, 1e9):
        expected = max((size for size in sizes if bytes_of(size) <= limit), default=None)
        for first in (sizes[0], sizes[40], sizes[-1]):
            found = largest_that_fits(bytes_of, sizes, budget=limit, first=first)
            assert found == expected, (limit, first)


def test_the_search_asks_for_few_sizes():
    asked = []

    def bytes_of(size):
        asked.append(size)
        return 10_000 + 313 * size

    assert largest_that_fits(bytes_of, range(1, 1_000_001), budget=8e7, first=64) == (80_000_000 - 10_000) // 313
    assert len(asked) <= 5
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_fit_by_measurement_and_the_next_sizes_do_not(strategy):
    case = small(depth=22, growth_rate=4, image_size=16, batch_size=16)
    budget = 15e6
    (answer,) = find_what_fits([variant(strategy)], case, budget=budget).answers

    def measured(**changes):
        step = variant(strategy).step(case.resized(**changes))
        return peak_of_step(step) + state_bytes(step.network) + step.images.nbytes + step.labels.nbytes

    assert answer.needed == pytest.approx(measured(), rel=0.03)
    batch, depth = answer.largest_batch, answer.largest_depth
    assert batch is not None
    assert depth is not None
    assert measured(batch_size=batch) == pytest.approx(budget, rel=0.03)
    assert depth % 6 == 4
    assert measured(depth=depth) <= 1.03 * budget
    assert 1.03 * measured(depth=depth + 6) >= budget


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
        assert row[1:] == [
            f"{int(record['bytes']) / 1e6:.1f}",
            record["largest_batch"],
            record["largest_depth"] or "none",
        ]
    assert any(line.startswith("L=16 with batches of 64 fits with ") for line in lines)
    best = max(int(record["largest_batch"]) for record in records)
    assert any(line.startswith(f"The largest batch for L=16 is {best}, with ") for line in lines)
    assert any("CUDA context" in line for line in lines)
    assert any("this is an estimate" in line for line in lines)


def test_a_budget_that_is_too_small_for_anything_is_said_to_be_so(capsys):
    assert run_here("benchmark", *TINY, "--budget_gb=1e-6") == 0
    output = capsys.readouterr().out
    assert output.count("none") == 2 * len(STRATEGIES) + 1
    assert "fits with none of them." in output


def test_the_largest_depth_that_is_tried_is_no_limit(monkeypatch):
    monkeypatch.setattr(budget, "LARGEST_DEPTH", 22)
    (answer,) = find_what_fits([variant("naive")], SMALL, budget=1e8).answers
    assert answer.largest_depth == 22
    text = Fitting(SMALL, 1e8, [answer]).as_text()
    assert "The deepest network with batches of 4 has depth 22 or more, with naive." in text
    assert "deepest network: depths up to 22 are tried" in text
    fitting = Fitting(SMALL, 1e8, [answer, replace(answer, strategy="buffer")])
    assert "has depth 22 or more, with naive, buffer." in fitting.as_text()
    deeper = small(depth=28)
    (answer,) = find_what_fits([variant("naive")], deeper, budget=1e8).answers
    assert answer.largest_depth == 28


def test_networks_for_imagenet_that_fit_are_named(monkeypatch):
    case = small(network="densenet169", depth=169, growth_rate=32, image_size=64)

    def count(variant, case):
        return TrainingBytes(0, 0, int(1e6 * case.network.depth * case.batch_size))

    monkeypatch.setattr(budget, "training_bytes", count)
    fitting = find_what_fits([variant("naive")], case, budget=4 * 170e6)
    assert fitting.answers == [Answer("naive", 676_000_000, 4, None, ("densenet121", "densenet169", "densenet161"))]
    text = fitting.as_text()
    assert re.search(r"\nnaive +676.0 +4 +121, 169, 161\n", text)
    assert "densenet169 with batches of 4 fits with naive." in text
    assert "With naive and batches of 4, these networks fit: densenet121, densenet169, densenet161." in text
    assert "deepest" not in text
    (record,) = csv.DictReader(fitting.as_csv().decode().splitlines())
    assert (record["networks"], record["largest_depth"]) == ("densenet121 densenet169 densenet161", "")


def test_counts_are_made_once():
    found = variant("naive")
    training_bytes(found, SMALL)
    hits = training_bytes.cache_info().hits
    training_bytes(found, SMALL)
    assert training_bytes.cache_info().hits == hits + 1
