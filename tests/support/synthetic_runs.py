"""Rows of runs that never ran, folders that look like runs, and what can be seen of their pictures."""

import io
import json

import matplotlib.image
import numpy as np
from hypothesis import strategies as st

from train.run.history import Row, to_csv


def make_rows(num_epochs, *, valid=True, test_error=None, rate=lambda epoch: 0.1, scale=0.8):
    """Errors that fall like 1 / epoch; those of validation are 5 % higher."""
    rows = []
    for epoch in range(1, num_epochs + 1):
        error = scale / epoch
        loss_and_error = (2 * error + 0.1, error + 0.05) if valid else (None, None)
        rows.append(Row(epoch, 2 * error, error, *loss_and_error, None, rate(epoch), 1.0 + epoch, 100.0 * epoch, None))
    if rows:
        rows[-1].test_error = test_error
    return rows


FLAGS = {"dataset": "digits", "depth": 10, "growth_rate": 2, "n_epochs": 5, "lr": 0.1, "seed": 1, "save": "x"}


def make_run(folder, rows, *, parameters=700, **flags):
    """A folder with config.json and, unless `rows` is None, results.csv."""
    folder.mkdir(parents=True)
    config = {"flags": FLAGS | flags, "parameters": parameters, "mean": [0.3] * 3, "std": [0.3] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    if rows is not None:
        (folder / "results.csv").write_text(to_csv(rows))
    return folder


def _numbers(high):
    return st.floats(0, high, allow_nan=False)


@st.composite
def any_rows(draw):
    """Rows as a run can have them, with and without validation images, a test error and a known peak of memory."""
    errors, losses, known = _numbers(1), _numbers(1e38), draw(st.booleans())
    rows = []
    for epoch in range(1, draw(st.integers(0, 8)) + 1):
        valid = (draw(losses), draw(errors)) if known else (None, None)
        speed = draw(losses), draw(losses), draw(losses), draw(st.none() | losses)
        rows.append(Row(epoch, draw(losses), draw(errors), *valid, None, *speed))
    if rows:
        rows[-1].test_error = draw(st.none() | errors)
    return rows


def read_png(content):
    """The pixels of a picture (height, width, channels), from 0 to 1."""
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def num_shades(picture):
    """How many different shades of grey a picture would have."""
    return len(np.unique(picture[..., :3].sum(2)))
