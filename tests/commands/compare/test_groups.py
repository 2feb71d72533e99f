"""Runs that differ in their seed alone: mean, standard deviation and number, in tables and in the plot."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from commands.compare.groups import group_by_seed
from commands.compare.plot import MOST_RUNS, draw_runs
from tests.support.application import run_here
from tests.support.synthetic_runs import make_record, make_rows, make_run

ERRORS = {0: 0.0466, 1: 0.0461, 10: 0.0481}


def rows_of(error, *, epochs=5, valid=True):
    return make_rows(epochs, valid=valid, test_error=error, scale=0.5 + error)


def record(name, *, seed, error=0.1, **flags):
    return make_record(name, rows_of(error), seed=seed, **flags)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Three seeds of one setting and an unfinished fourth, two of another, and a run alone."""
    monkeypatch.chdir(tmp_path)
    for seed, error in ERRORS.items():
        make_run(tmp_path / f"runs/a/seed-{seed}", rows_of(error), seed=seed)
    make_run(tmp_path / "runs/a/seed-11", make_rows(3), seed=11)
    for seed in (0, 1):
        make_run(tmp_path / f"runs/b_{seed}", rows_of(0.2), seed=seed, lr=0.05)
    make_run(tmp_path / "runs/c", rows_of(0.3), seed=0, lr=0.01)
    return tmp_path


def in_percent(values):
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"


VALID = in_percent([(0.5 + error) / 5 + 0.05 for error in ERRORS.values()])


def test_groups_have_mean_and_deviation_below_the_table_of_runs(here, capsys):
    assert run_here("compare", "runs") == 0
    runs, groups = capsys.readouterr().out.split("\n\n")
    assert len(runs.splitlines()) == 1 + 7
    assert groups == (
        "Runs that differ in their seed alone, mean ± standard deviation\n"
        "runs                        runs/a  runs/b_0 and 1 more\n"
        "network                  L=10, k=2            L=10, k=2\n"
        "data set                    digits               digits\n"
        "--lr                           0.1                 0.05\n"
        "epochs                           5                    5\n"
        f"validation error (%)  {VALID}         19.00 ± 0.00\n"
        f"test error (%)        {in_percent([*ERRORS.values()]):>12}         20.00 ± 0.00\n"
        "n                                3                    2\n"
        "seeds                     0, 1, 10                 0, 1\n"
        "parameters                     700                  700\n"
    )
    assert in_percent([*ERRORS.values()]) == "4.69 ± 0.10"


def test_json_holds_runs_and_groups_for_programs(here, capsys):
    config = json.loads((here / "runs/c/config.json").read_text())
    config["flags"]["odd"] = float("nan")
    (here / "runs/c/config.json").write_text(json.dumps(config))
    assert run_here("compare", "runs", "--format=json") == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [run["run"] for run in content["runs"]][:2] == ["runs/a/seed-0", "runs/a/seed-1"]
    assert content["runs"][0]["flags"]["lr"] == 0.1
    assert content["runs"][-1]["flags"]["odd"] == "nan"
    first, second = content["groups"]
    assert first["runs"] == ["runs/a/seed-0", "runs/a/seed-1", "runs/a/seed-10"]
    assert (first["seeds"], first["n"], second["n"]) == ([0, 1, 10], 3, 2)
    errors = [run["test_error"] for run in content["runs"] if run["run"] in first["runs"]]
    assert first["test_error"]["mean"] == pytest.approx(np.mean(errors), rel=1e-12)
    assert first["test_error"]["standard_deviation"] == pytest.approx(np.std(errors, ddof=1), rel=1e-12)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("markdown", "| runs/b\\_0 and 1 more | L=10, k=2 | digits | 0.05 | 5 | 19.00 ± 0.00 | 20.00 ± 0.00 |"),
        (
            "latex",
            "  runs/b\\_0 and 1 more & L=10, k=2 & digits & 0.05 & 5 & 19.00 $\\pm$ 0.00 & 20.00 $\\pm$ 0.00 & 2 &",
        ),
    ],
)
def test_tables_for_papers_have_a_line_for_each_run_and_each_group(form, line, here, capsys):
    assert run_here("compare", "runs", f"--format={form}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("runs/" in text for text in lines) == 7 + 2
    assert sum(text.startswith(line) for text in lines) == 1


def test_a_seed_that_comes_twice_is_counted_once_and_said(here, capsys):
    make_run(here / "runs/again", rows_of(0.4), seed=1)
    assert run_here("compare", "runs", "--format=json") == 0
    out, error = capsys.readouterr()
    (group,) = [group for group in json.loads(out)["groups"] if group["n"] == 3]
    assert group["seeds"] == [0, 1, 10]
    assert error == (
        "warning: runs/again has flags and seed of another run, and is not counted in mean and standard deviation\n"
    )


@pytest.mark.parametrize(
    "flags", [{"lr": 0.2}, {"depth": 16}, {"dataset": "svhn"}, {"efficient": False}, {"recipe": "x"}], ids=str
)
def test_a_run_that_differs_in_another_flag_is_in_no_group(flags):
    runs = [record("a", seed=1), record("b", seed=2, **flags)]
    assert group_by_seed(runs, not_compared=("save", "depth", "dataset")) == []


def test_a_flag_that_an_older_version_did_not_have_has_its_default():
    older, newer = record("a", seed=1), {"mixup": 0.0, "in_channels": 3, "ema": 0.0}
    (group,) = group_by_seed([older, record("b", seed=2, **newer)], not_compared=("save",))
    assert group.seeds == [1, 2]
    assert group_by_seed([older, record("b", seed=2, **newer | {"mixup": 0.2})], not_compared=("save",)) == []
    assert group_by_seed([older, record("b", seed=2, augment=False)], not_compared=("save",)) == []  # it was chosen


def test_runs_that_are_not_finished_or_have_no_seed_are_in_no_group():
    done, others = record("a", seed=1), [make_record("b", make_rows(5), seed=2), record("c", seed=None)]
    assert group_by_seed([done, *others], not_compared=()) == []
    assert group_by_seed([done, record("a/b", seed=True)], not_compared=()) == []


def test_flags_that_are_not_compared_may_differ():
    (group,) = group_by_seed(
        [record(f"x/{seed}", seed=seed, save=f"x/{seed}") for seed in (1, 2)], not_compared={"save"}
    )
    assert (group.name, group.seeds) == ("x", [1, 2])


def test_runs_without_validation_images_have_no_validation_error(here, capsys):
    for seed in (0, 1):
        make_run(here / f"last/seed-{seed}", rows_of(0.1, valid=False), seed=seed)
    assert run_here("compare", "last", "--format=json") == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["valid_error"] is None


@pytest.fixture
def figure_of(monkeypatch):
    """A function that returns the figure of some runs."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))

    def draw(runs):
        draw_runs(runs, group_by_seed(runs, not_compared=()))
        return figures[-1]

    return draw


def test_a_group_is_one_line_of_means_in_a_band_of_one_deviation(figure_of):
    runs = [record(f"x/{seed}", seed=seed, error=error) for seed, error in ERRORS.items()]
    alone = record("alone", seed=1, lr=0.2)
    figure = figure_of([*runs, alone])
    loss, _, error = figure.axes
    for panel, values in (
        (loss, [[row.train_loss for row in run.rows] for run in runs]),
        (error, [[100 * row.valid_error for row in run.rows] for run in runs]),
    ):
        mean, deviation = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        np.testing.assert_allclose(panel.get_lines()[0].get_ydata(), mean, rtol=1e-12)
        (band,) = panel.collections
        edges = band.get_paths()[0].vertices
        for epoch in range(1, 6):
            heights = edges[edges[:, 0] == epoch, 1]
            expected = [mean[epoch - 1] - deviation[epoch - 1], mean[epoch - 1] + deviation[epoch - 1]]
            np.testing.assert_allclose([heights.min(), heights.max()], expected, rtol=1e-12)
        assert panel.get_ylim()[1] > edges[:, 1].max()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "x: mean of 3 seeds, band of ± one standard deviation, test 4.69 ± 0.10 %",
        "alone: best epoch 5, validation 17.00%, test 10.00%",
    ]


def test_many_seeds_of_one_setting_fit_into_a_plot(figure_of):
    figure = figure_of([record(f"x/{seed}", seed=seed) for seed in range(MOST_RUNS + 5)])
    assert len(figure.legends[0].get_texts()) == 1
