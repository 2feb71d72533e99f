"""The plot of a run."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from commands.plots import top_of
from commands.train.plot import draw_curves
from tests.support.synthetic_runs import make_rows, num_shades, read_png


def drop(epoch):
    return 0.1 if epoch <= 2 else 0.01


def cosine(epoch):
    return 0.05 * (1 + math.cos(math.pi * (epoch - 1) / 300))


RUNS = [
    make_rows(1),
    make_rows(2, rate=drop),
    make_rows(40, test_error=0.1),
    make_rows(3, valid=False),
    make_rows(300, rate=cosine, test_error=0.05),
    make_rows(2, valid=False, scale=0.0, rate=lambda epoch: 0.0),
]


def drawn(rows, title="a run"):
    file = io.BytesIO()
    draw_curves(rows, file, title=title)
    return file.getvalue()


@pytest.mark.parametrize("rows", RUNS, ids=range(len(RUNS)))
def test_it_is_a_png_of_the_documented_size_with_something_on_it(rows):
    plot = read_png(drawn(rows))
    assert plot.shape[:2] == (800, 1600)
    assert num_shades(plot) > 50


def test_equal_rows_give_equal_bytes():
    assert drawn(make_rows(7, test_error=0.1)) == drawn(make_rows(7, test_error=0.1))


@pytest.mark.parametrize("title", ["$x^2", r"a \frac{ b$", "_", "", "日本"])
def test_a_title_is_text_and_no_mathematics(title):
    assert drawn(make_rows(2), title)


def panels(monkeypatch, rows, **settings):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw_curves(rows, io.BytesIO(), title="a run", **settings)
    return figures[0].axes


def curves_of(panel, num_epochs):
    """The lines with a value for each epoch."""
    return [list(line.get_ydata()) for line in panel.get_lines() if len(line.get_xdata()) == num_epochs]


def test_lines_are_the_numbers_of_the_rows_with_errors_in_percent(monkeypatch):
    rows = make_rows(5, test_error=0.1, rate=drop)
    loss, rate, error = panels(monkeypatch, rows)
    assert curves_of(loss, 5) == [[row.train_loss for row in rows], [row.valid_loss for row in rows]]
    assert curves_of(error, 5) == [[row.train_error * 100 for row in rows], [row.valid_error * 100 for row in rows]]
    assert curves_of(rate, 5) == [[0.1, 0.1, 0.01, 0.01, 0.01]]
    assert {*names_in(error)} == {
        "training",
        "validation",
        "chosen: epoch 5, 21.00%",
        "test error of the chosen: 10.00%",
    }
    for panel in (loss, rate, error):
        assert any(list(line.get_xdata()) == [5, 5] for line in panel.get_lines())  # through the chosen epoch


def names_in(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_averaged_weights_have_lines_and_are_named_where_they_are_chosen(monkeypatch):
    rows = make_rows(5, ema=True)
    loss, _, error = panels(monkeypatch, rows)
    assert curves_of(loss, 5)[2] == [row.ema_valid_loss for row in rows]
    assert curves_of(error, 5)[2] == [row.ema_valid_error * 100 for row in rows]
    assert {*names_in(error)} == {"training", "validation", "validation of EMA", "chosen: EMA of epoch 5, 18.00%"}
    assert any(list(line.get_ydata()) == [rows[-1].ema_valid_error * 100] for line in error.get_lines())


def test_losses_of_other_labels_are_told_apart_by_a_legend(monkeypatch):
    loss, _, error = panels(monkeypatch, make_rows(5), label_smoothing=0.1)
    assert names_in(loss) == ["training (smoothed labels)", "validation"]
    assert names_in(error)[:2] == ["training", "validation"]
    assert panels(monkeypatch, make_rows(5))[0].get_legend() is None


def test_losses_and_errors_of_mixtures_are_told_apart_by_legends(monkeypatch):
    loss, _, error = panels(monkeypatch, make_rows(5), mixes=True)
    assert names_in(loss) == names_in(error)[:2] == ["training (mixed labels)", "validation"]
    loss, _, error = panels(monkeypatch, make_rows(5), mixes=True, label_smoothing=0.1)
    assert names_in(loss)[0] == "training (smoothed and mixed labels)"
    assert names_in(error)[0] == "training (mixed labels)"


def test_without_validation_only_what_was_measured_is_drawn(monkeypatch):
    loss, rate, error = panels(monkeypatch, make_rows(3, valid=False))
    assert names_in(error) == ["training"]
    assert [len(panel.get_lines()) for panel in (loss, rate, error)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("rate", "scale"), [(drop, "log"), (cosine, "linear"), (lambda epoch: 0.1, "linear"), (lambda epoch: 0, "linear")]
)
def test_stairs_are_drawn_by_their_factors_and_curves_as_they_are(rate, scale, monkeypatch):
    _, panel, _ = panels(monkeypatch, make_rows(30, rate=rate))
    assert panel.get_yscale() == scale
    low, high = panel.get_ylim()
    assert low <= min(map(rate, range(1, 31)))
    assert high > max(map(rate, range(1, 31)))


def test_early_epochs_that_dwarf_the_rest_leave_the_panel():
    falling = [1 / epoch for epoch in range(1, 301)]
    assert top_of([falling]) == pytest.approx(1.08 * 5 / 201)
    assert top_of([falling[:3]]) == pytest.approx(1.08)
    assert top_of([falling], visible=[0.5]) == pytest.approx(0.54)
    assert top_of([[0.0]]) == 1


@given(st.lists(st.lists(st.just(0.0) | st.floats(1e-20, 1e30), min_size=1, max_size=40), min_size=1, max_size=3))
def test_the_last_third_is_always_seen_and_never_pressed_to_the_bottom(lines):
    top = top_of(lines)
    late = max(max(line[2 * len(line) // 3 :]) for line in lines)
    assert top >= late
    long = [line for line in lines if len(line) >= 10 and max(line[2 * len(line) // 3 :])]
    if long == lines:
        assert top <= 1.09 * 7.5 * late
