"""The picture of a run."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from train.curves import draw_curves
from train.history import Row


def make_rows(num_epochs, *, valid=True, test_error=None):
    rows = []
    for epoch in range(1, num_epochs + 1):
        error = 0.8 / epoch
        loss_and_error = (2 * error + 0.1, error + 0.05) if valid else (None, None)
        rows.append(Row(epoch, 2 * error, error, *loss_and_error, None, 0.1, 1.0, 100.0, None))
    rows[-1].test_error = test_error
    return rows


@pytest.mark.parametrize("rows", [make_rows(1), make_rows(40, test_error=0.1), make_rows(3, valid=False)])
def test_it_is_a_png_of_the_documented_size_with_something_on_it(rows):
    file = io.BytesIO()
    draw_curves(rows, file, title="a run")
    file.seek(0)
    picture = matplotlib.image.imread(file, format="png")
    assert picture.shape[:2] == (640, 1600)
    assert np.unique(picture.reshape(-1, picture.shape[2]), axis=0).shape[0] > 50


def panels(monkeypatch, rows):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw_curves(rows, io.BytesIO(), title="a run")
    return figures[0].axes


def test_lines_are_the_numbers_of_the_rows_with_errors_in_percent(monkeypatch):
    rows = make_rows(5, test_error=0.1)
    loss, error = panels(monkeypatch, rows)
    for panel, quantity, scale in ((loss, "loss", 1), (error, "error", 100)):
        for line, part in zip(panel.get_lines(), ("train", "valid"), strict=False):
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
            assert list(line.get_ydata()) == [getattr(row, f"{part}_{quantity}") * scale for row in rows]
    labels = [text.get_text() for text in error.get_legend().get_texts()]
    assert labels == ["training", "validation", "chosen: epoch 5, 21.00%", "test error of the chosen: 10.00%"]


def test_without_validation_only_what_was_measured_is_drawn(monkeypatch):
    _, error = panels(monkeypatch, make_rows(3, valid=False))
    assert [text.get_text() for text in error.get_legend().get_texts()] == ["training"]
