"""Synthetic rows of results.csv, folders that look like runs, and measurements on plots."""

import io
import json
from pathlib import Path

import matplotlib.image
import numpy as np
from hypothesis import strategies as st

from commands.run_record import RunRecord
from train.run.history import Row, to_csv


def make_rows(num_epochs, *, valid=True, ema=False, test_error=None, rate=lambda epoch: 0.1, scale=0.8):
    """Rows whose errors fall like 1 / epoch; validation errors are 0.05 higher, those of averaged weights 0.02."""
    rows = []
    for epoch in range(1, num_epochs + 1):
        error = scale / epoch
        row = Row(
            epoch=epoch,
            train_loss=2 * error,
            train_error=error,
            valid_loss=2 * error + 0.1 if valid else None,
            valid_error=error + 0.05 if valid else None,
            test_error=None,
            learning_rate=rate(epoch),
            seconds=1.0 + epoch,
            images_per_second=100.0 * epoch,
            peak_memory_mb=None,
            ema_valid_loss=2 * error + 0.05 if ema else None,
            ema_valid_error=error + 0.02 if ema else None,
        )
        rows.append(row)
    if rows:
        rows[-1].test_error = test_error
    return rows


FLAGS = {"dataset": "digits", "depth": 10, "growth_rate": 2, "n_epochs": 5, "lr": 0.1, "seed": 1, "save": "x"}


def make_run(folder, rows, *, parameters=700, **flags):
    """Write config.json and, unless `rows` is None, results.csv into a new folder."""
    folder.mkdir(parents=True)
    config = {"flags": FLAGS | flags, "parameters": parameters, "mean": [0.3] * 3, "std": [0.3] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    if rows is not None:
        (folder / "results.csv").write_text(to_csv(rows))
    return folder


def make_record(name, rows, **flags):
    """A record without a folder."""
    return RunRecord(Path(name), {"depth": 10, **flags}, len(rows) or 1, 7, rows)


def _numbers(high):
    return st.floats(0, high, allow_nan=False)


@st.composite
def any_rows(draw):
    """Rows as a run can have them, with and without validation images, averages, a test error and a peak of memory."""
    errors, losses, known = _numbers(1), _numbers(1e38), draw(st.booleans())
    averaged = known and draw(st.booleans())
    rows = []
    for epoch in range(1, draw(st.integers(0, 8)) + 1):
        row = Row(
            epoch=epoch,
            train_loss=draw(losses),
            train_error=draw(errors),
            valid_loss=draw(losses) if known else None,
            valid_error=draw(errors) if known else None,
            test_error=None,
            learning_rate=draw(losses),
            seconds=draw(losses),
            images_per_second=draw(losses),
            peak_memory_mb=draw(st.none() | losses),
            ema_valid_loss=draw(losses) if averaged else None,
            ema_valid_error=draw(errors) if averaged else None,
        )
        rows.append(row)
    if rows:
        rows[-1].test_error = draw(st.none() | errors)
    return rows


def read_png(content):
    """The pixels of a PNG (height, width, channels), from 0 to 1."""
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def num_shades(pixels):
    """The number of distinct sums of red, green and blue: 1 for an empty plot."""
    return len(np.unique(pixels[..., :3].sum(2)))
