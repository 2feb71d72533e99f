"""The report on a test set: printed, as CSV, and as a plot."""

import csv
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from commands.evaluate.plot import draw_report
from commands.evaluate.reliability import BINS, Bin, Reliability
from commands.evaluate.reliability_plot import draw_reliability
from commands.evaluate.report import Report
from tests.support.synthetic_runs import num_shades, read_png


def reliability_of(*filled, temperature=1.0, loss=0.25):
    """Reliability with some bins filled: pairs of confidence and accuracy, the last one in the highest bin."""
    pairs = [None] * (BINS - len(filled)) + [*filled]
    bins = [Bin(i / BINS, (i + 1) / BINS, *((i, *pair) if pair else (0, None, None))) for i, pair in enumerate(pairs)]
    return Reliability(temperature, loss, 0.0625, 0.875, tuple(bins))


def report_on(confusion, classes=None, top5_error=None, calibrated=None):
    confusion = torch.tensor(confusion, dtype=torch.int64)
    classes = classes or tuple(f"c{i}" for i in range(len(confusion)))
    error = 1 - confusion.trace().item() / confusion.sum().item()
    return Report(error, top5_error, confusion, classes, reliability_of((0.9, 0.5), (0.97, 1.0)), calibrated)


THREE = report_on([[8, 2, 0], [0, 1000, 0], [0, 0, 0]], ("cat", "dog", "cow"))


def test_text_is_a_line_for_each_class_and_the_matrix():
    assert THREE.summary() == "test error 0.20% (2 of 1,010 images), loss 0.2500"
    assert THREE.as_text() == (
        "probabilities   calibration error (15 bins)  negative log likelihood  average confidence\n"
        "of the network                        6.25%                   0.2500              87.50%\n"
        "\n"
        "class  images  accuracy  most often misclassified as\n"
        "cat        10    80.00%                      dog (2)\n"
        "dog     1,000   100.00%                            -\n"
        "cow         0         -                            -\n"
        "\n"
        "confusion matrix, true class (line) and predicted class (column):\n"
        "\n"
        "     cat    dog  cow\n"
        "cat    8      2    .\n"
        "dog    .  1,000    .\n"
        "cow    .      .    ."
    )


def test_a_temperature_gets_a_line_of_its_own():
    report = report_on([[8, 2], [0, 10]], calibrated=reliability_of((0.9, 0.9), temperature=1.53456, loss=0.125))
    assert report.as_text().splitlines()[1:3] == [
        "of the network                              6.25%                   0.2500              87.50%",
        "at temperature 1.535                        6.25%                   0.1250              87.50%",
    ]


def test_for_many_classes_the_largest_confusions_are_listed():
    confusion = torch.eye(13, dtype=torch.int64) * 10
    for i in range(12):
        confusion[i, i + 1] = i
    lines = report_on(confusion.tolist(), top5_error=0.125).as_text().splitlines()
    assert lines[18] == "largest confusions:"
    assert len(lines) == 18 + 3 + 10
    assert [line.split() for line in lines[20:23]] == [
        ["true", "class", "predicted", "class", "images", "of", "the", "true", "class"],
        ["c11", "c12", "11", "52.38%"],
        ["c10", "c11", "10", "50.00%"],
    ]


def test_many_classes_without_a_mistake_have_no_confusions():
    report = report_on((torch.eye(20, dtype=torch.int64) * 3).tolist(), top5_error=0.0)
    assert report.as_text().endswith("\n\nno image is misclassified")
    assert report.summary() == "test error 0.00% (0 of 60 images), loss 0.2500, top-5 error 0.00%"


def test_of_equal_mistakes_the_first_is_named():
    assert report_on([[1, 0, 2, 2], [0] * 4, [0] * 4, [0] * 4]).rows[0].most_frequent_mistake == 2


@given(st.data())
def test_csv_has_all_counts(data):
    size = data.draw(st.integers(1, 15))
    counts = st.lists(st.integers(0, 50), min_size=size, max_size=size)
    confusion = data.draw(st.lists(counts, min_size=size, max_size=size))
    confusion[0][0] += 1
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
    classes = data.draw(st.lists(names, min_size=size, max_size=size, unique=True))
    rows = list(csv.DictReader(io.StringIO(report_on(confusion, tuple(classes)).as_csv().decode(), newline="")))
    assert [row["class"] for row in rows] == classes
    assert [[int(row[f"predicted {name}"]) for name in classes] for row in rows] == confusion
    for i, row in enumerate(rows):
        images = sum(confusion[i])
        assert int(row["images"]) == images
        assert row["accuracy"] == (str(confusion[i][i] / images) if images else "")


@given(st.data())
def test_text_of_any_class_names_has_the_lines_of_its_tables(data):
    size = data.draw(st.integers(1, 15))
    classes = tuple(data.draw(st.lists(st.text(max_size=60), min_size=size, max_size=size)))
    text = report_on([[1] * size] * size, classes).as_text()
    assert len(text.splitlines()) == 4 + size + (4 + size if size <= 12 else 4 + 10)


@pytest.mark.parametrize("size", [1, 2, 10, 100])
def test_the_plot_has_the_documented_size_and_equal_bytes_each_time(size):
    confusion = torch.eye(size, dtype=torch.int64) * 90 + torch.arange(size * size).view(size, size) % 7
    confusion[size // 2] = 0 if size > 1 else 1  # a class without images
    classes = tuple("_a$b^{ 日本"[: 3 + i % 8] for i in range(size))
    report = report_on(confusion.tolist(), classes, calibrated=reliability_of((1.0, 1.0)) if size == 2 else None)
    plot = draw_report(report, title=["runs/$x$", "_"])
    assert read_png(plot).shape[:2] == (1152, 2080)
    assert num_shades(read_png(plot)) > 50
    assert size != 10 or plot == draw_report(report, title=["runs/$x$", "_"])


@pytest.mark.parametrize("classes", [("a", "b"), ("a long name", "another one")])
def test_its_title_keeps_away_from_the_edges(classes):
    title = ["runs/x", "L" * 200, "test error 4.55% (1 of 22 images), loss 0.1"]
    pixels = read_png(draw_report(report_on([[1, 0], [0, 1]], classes), title=title))[..., :3]
    rows, columns = (pixels.min((1, 2)) < 0.5).nonzero()[0], (pixels.min((0, 2)) < 0.5).nonzero()[0]
    assert 8 <= rows.min() < 60  # of 1152: the title is there
    assert 4 <= columns.min() <= columns.max() < 2080 - 4


@pytest.mark.parametrize(("confidence", "accuracy"), [(0.98, 0.2), (0.95, 0.7)])
def test_the_points_of_the_reliability_diagram_lie_where_they_should(confidence, accuracy):
    figure = Figure()
    report = replace(report_on([[1, 0], [0, 1]]), reliability=reliability_of((confidence, accuracy)))
    draw_reliability(figure, report)
    upper, lower = figure.axes
    (points,) = upper.collections
    assert points.get_offsets().tolist() == [[confidence, accuracy]]
    assert lower.patches[0].get_data().values.tolist() == [0] * (BINS - 1) + [1]
