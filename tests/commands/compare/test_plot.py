"""The plot of several runs."""

import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from matplotlib.figure import Figure

from commands.compare.plot import COLOURS, MOST_RUNS, draw_runs
from tests.support.synthetic_runs import any_rows, make_record, make_rows, read_png


@pytest.fixture
def figure_of(monkeypatch):
    """A function that returns the figure of some runs."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))

    def draw(*runs):
        draw_runs(runs)
        return figures[-1]

    return draw


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_run_has_its_own_look_and_a_dot_at_its_best_epoch(figure_of):
    runs = [make_record(f"_${i}", make_rows(i + 1)) for i in range(MOST_RUNS)]
    figure = figure_of(*runs)
    loss, rate, error = figure.axes
    looks = {(line.get_color(), line.get_linestyle()) for line in rate.get_lines()}
    assert len(looks) == MOST_RUNS == 3 * len(COLOURS)
    lines = error.get_lines()
    assert [list(line.get_ydata()) for line in lines[::2]] == [[r.valid_error * 100 for r in run.rows] for run in runs]
    assert [tuple(dot.get_xydata()[0]) for dot in lines[1::2]] == [
        (len(run.rows), run.rows[-1].valid_error * 100) for run in runs
    ]
    assert [list(line.get_ydata()) for line in loss.get_lines()[::2]] == [
        [r.train_loss for r in run.rows] for run in runs
    ]
    assert labels_of(figure)[1] == "_$1: best epoch 2, validation 45.00%"
    assert figure.get_suptitle() == f"{MOST_RUNS} runs"


def test_the_legend_says_which_losses_are_of_smoothed_labels(figure_of):
    rows, flags = make_rows(2), {"label_smoothing": 0.1}
    figure = figure_of(
        make_record("a", rows),
        make_record("b", rows, label_smoothing=0),
        make_record("c", rows, **flags),
        make_record("d", make_rows(2, valid=False), **flags),
        make_record("e", rows, cutmix=1.0),
        make_record("f", rows, mixup=0.2, **flags),
    )
    assert labels_of(figure) == [
        "a: best epoch 2, validation 45.00%",
        "b: best epoch 2, validation 45.00%",
        "c: best epoch 2, validation 45.00%, smoothed labels",
        "d: epoch 2, smoothed labels",
        "e: best epoch 2, validation 45.00%, mixed labels",
        "f: best epoch 2, validation 45.00%, smoothed and mixed labels",
    ]


def test_the_legend_has_the_test_error_of_a_finished_run(figure_of):
    figure = figure_of(
        make_record("a", make_rows(2, test_error=0.125)), make_record("b", make_rows(2, test_error=0.125, valid=False))
    )
    assert labels_of(figure) == ["a: best epoch 2, validation 45.00%, test 12.50%", "b: epoch 2, test 12.50%"]


@pytest.mark.parametrize(
    ("datasets", "title"),
    [(["digits"], "1 run on digits"), (["digits"] * 2, "2 runs on digits"), (["digits", "svhn"], "2 runs")],
)
def test_the_title_says_how_many_runs_and_on_which_data(datasets, title, figure_of):
    figure = figure_of(*(make_record(f"r{i}", make_rows(2), dataset=name) for i, name in enumerate(datasets)))
    assert figure.get_suptitle() == title


@pytest.mark.parametrize("length", [5, 40])
def test_all_of_the_legend_is_in_the_plot(length, figure_of):
    runs = [make_record(c * length, make_rows(2, test_error=0.1), label_smoothing=0.1, dataset="digits") for c in "abc"]
    figure = figure_of(*runs)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0


def steps(*rates):
    return lambda epoch: rates[min(epoch - 1, len(rates) - 1)]


def half_cosine(epoch):
    return 0.05 * (1 + math.cos(math.pi * (epoch - 1) / 30))  # ends at 0.00027


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([steps(0.1, 0.01, 0.001), half_cosine], "log"),
        ([steps(0.01), steps(0.001), half_cosine], "log"),
        (
            [steps(*(10**-i for i in range(1, 4))), *(steps(0.1 * i, 0.01 * i) for i in range(1, 8))],
            "log",
        ),
        ([steps(0.1, 0.01, 0.001), steps(0.0)], "log"),
        ([half_cosine, half_cosine], "linear"),
        ([steps(0.1), half_cosine], "linear"),
        ([steps(0.1), steps(0.0)], "linear"),
    ],
)
def test_rates_that_differ_by_factors_are_told_apart_whatever_other_runs_do(rates, scale, figure_of):
    runs = [make_record(f"r{i}", make_rows(30, rate=rate)) for i, rate in enumerate(rates)]
    figure = figure_of(*runs)
    panel = figure.axes[1]
    assert panel.get_yscale() == scale
    low, high = panel.get_ylim()
    assert high > max(rate(epoch) for rate in rates for epoch in range(1, 31))
    if scale == "log":
        assert 0 < low < 0.001
        places = [panel.transAxes.inverted().transform(panel.transData.transform((1, y)))[1] for y in (0.001, 0.01)]
        assert places[1] - places[0] > 0.15  # of the height of the panel


def test_equal_runs_give_equal_bytes():
    assert draw_runs([make_record("a", make_rows(3))]) == draw_runs([make_record("a", make_rows(3))])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_rows(), any_rows())
@example([], make_rows(2, rate=lambda epoch: 5e-324 if epoch == 2 else 1.0))
@example(make_rows(2, scale=5e-324, rate=lambda epoch: 5e-324 * epoch), make_rows(1, rate=lambda epoch: 3e38))
def test_any_rows_make_a_plot(one, other):
    runs = [make_record("a", one), make_record("日本", other)]
    assert read_png(draw_runs(runs)).shape[1] == 1600
