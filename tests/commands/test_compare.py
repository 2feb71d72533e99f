"""`python demo.py compare`: runs side by side."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from matplotlib.figure import Figure

from commands.compare.plot import COLOURS, MOST_RUNS, _label, draw_runs
from commands.compare.table import RunsTable, differing_flags
from commands.run_history import Logbook, read_logbook
from tests.support.application import ROOT, assert_refused, everything_in, read_csv, run_here
from tests.support.run_preparations import linked, nothing, placed
from tests.support.synthetic_runs import any_rows, make_rows, make_run, num_shades, read_png
from train.run.history import to_csv


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with three runs: done, going on without validation images, and just begun."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "done", make_rows(5, test_error=0.125, rate=lambda epoch: 0.1 / epoch))
    make_run(tmp_path / "going", make_rows(3, valid=False), lr=0.05, wd=None, data="elsewhere")
    make_run(tmp_path / "begun", None, depth=16, parameters=123456)
    return tmp_path


def test_table_names_what_differs_and_how_far_each_run_is(here, capsys):
    before = everything_in(here)
    assert run_here("compare", "done", "going", "begun") == 0
    assert capsys.readouterr().out == (
        "run                    done      going      begun\n"
        "network           L=10, k=2  L=10, k=2  L=16, k=2\n"
        "data set             digits     digits     digits\n"
        "--lr                    0.1       0.05        0.1\n"
        "--wd                      -       None          -\n"
        "epochs               5 of 5     3 of 5     0 of 5\n"
        "best epoch                5          3          -\n"
        "validation error     21.00%          -          -\n"
        "test error           12.50%          -          -\n"
        "parameters              700        700    123,456\n"
        "s/epoch                 4.0        3.0          -\n"
        "images/s                300        200          -\n"
        "peak MB                   -          -          -\n"
    )
    assert everything_in(here) == before


def test_the_same_number_in_another_form_is_no_difference(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", None, drop_rate=0, momentum=0.9, efficient=True)
    make_run(tmp_path / "b", None, drop_rate=0.0, momentum=0.8, efficient=1)
    assert run_here("compare", "a", "b") == 0
    assert re.findall(r"^--\S+", capsys.readouterr().out, re.MULTILINE) == ["--momentum", "--efficient"]


def test_folders_of_own_images_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cats", "dogs"):
        make_run(tmp_path / name, None, dataset="folder", data=f"images/{name}")
    assert run_here("compare", "cats", "dogs") == 0
    assert re.search(r"^--data +images/cats +images/dogs$", capsys.readouterr().out, re.MULTILINE)


def test_many_runs_have_a_line_each(here, capsys):
    names = [f"r{i}" for i in range(7)]
    for i, name in enumerate(names):
        make_run(here / name, make_rows(i + 1), seed=i)
    assert run_here("compare", *names) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", lines[0])[:5] == ["run", "network", "data set", "--seed", "epochs"]
    assert [line.split()[0] for line in lines[1:]] == names


def test_new_files_hold_table_and_picture(here):
    assert run_here("compare", "done", "going", "begun", "--csv=t.csv", "--plot=p.png") == 0
    done, going, begun = read_csv(here / "t.csv")
    assert done == {
        "run": "done",
        "dataset": "digits",
        "depth": "10",
        "growth_rate": "2",
        "flag_lr": "0.1",
        "flag_wd": "",
        "n_epochs": "5",
        "epochs_done": "5",
        "best_epoch": "5",
        "valid_error": repr(0.8 / 5 + 0.05),
        "test_error": "0.125",
        "parameters": "700",
        "seconds_per_epoch": "4.0",
        "images_per_second": "300.0",
        "peak_memory_mb": "",
    }
    assert (going["epochs_done"], going["test_error"]) == ("3", "")
    assert begun["best_epoch"] == begun["seconds_per_epoch"] == ""
    picture = read_png((here / "p.png").read_bytes())
    assert picture.shape[1] == 1600
    assert num_shades(picture) > 50


def test_one_run_is_enough_for_a_table(here, capsys):
    assert run_here("compare", "done") == 0
    assert "--" not in capsys.readouterr().out


def book(name, rows, **flags):
    return Logbook(name, {"depth": 10, **flags}, len(rows) or 1, 7, rows)


def test_flags_that_a_run_lacks_are_a_difference_and_its_folders_are_not():
    runs = [book("a", [], lr=0.1, seed=1, save="a"), book("b", [], seed=1, save="b"), book("c", [], lr=0.1, seed=1)]
    assert differing_flags(runs) == ["lr"]
    assert differing_flags(runs[:1]) == []


def test_each_run_has_its_own_look_and_a_dot_at_its_best_epoch(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    runs = [book(f"_${i}", make_rows(i + 1)) for i in range(MOST_RUNS)]
    draw_runs(runs)
    loss, rate, error = figures[0].axes
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
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels[1] == "_$1: best epoch 2, validation 45.00%"
    assert figures[0].get_suptitle() == f"{MOST_RUNS} runs"


def test_the_legend_says_whose_loss_is_of_smoothed_labels():
    rows, flags = make_rows(2), {"label_smoothing": 0.1}
    assert _label(book("a", rows)) == _label(book("a", rows, label_smoothing=0)) == "a: best epoch 2, validation 45.00%"
    assert _label(book("a", rows, **flags)) == "a: best epoch 2, validation 45.00%, smoothed labels"
    assert _label(book("a", make_rows(2, valid=False), **flags)) == "a: epoch 2, smoothed labels"


def test_the_legend_has_the_test_error_of_a_run_that_is_done():
    assert _label(book("a", make_rows(2, test_error=0.125))) == "a: best epoch 2, validation 45.00%, test 12.50%"
    assert _label(book("a", make_rows(2, test_error=0.125, valid=False))) == "a: epoch 2, test 12.50%"


@pytest.mark.parametrize(
    ("datasets", "title"),
    [(["digits"], "1 run on digits"), (["digits"] * 2, "2 runs on digits"), (["digits", "svhn"], "2 runs")],
)
def test_the_title_says_how_many_runs_and_on_which_data(datasets, title, monkeypatch):
    (figure,) = drawn_runs([book(f"r{i}", make_rows(2), dataset=name) for i, name in enumerate(datasets)], monkeypatch)
    assert figure.get_suptitle() == title


def drawn_runs(runs, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw_runs(runs)
    return figures


@pytest.mark.parametrize("length", [5, 40])
def test_all_of_the_legend_is_in_the_picture(length, monkeypatch):
    runs = [book(c * length, make_rows(2, test_error=0.1), label_smoothing=0.1, dataset="digits") for c in "abc"]
    (figure,) = drawn_runs(runs, monkeypatch)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0


def stairs(*rates):
    return lambda epoch: rates[min(epoch - 1, len(rates) - 1)]


def half_cosine(epoch):
    return 0.05 * (1 + math.cos(math.pi * (epoch - 1) / 30))  # ends at 0.00027


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([stairs(0.1, 0.01, 0.001), half_cosine], "log"),
        ([stairs(0.01), stairs(0.001), half_cosine], "log"),
        ([stairs(*(10**-i for i in range(1, 4))), *(stairs(0.1 * i, 0.01 * i) for i in range(1, 8))], "log"),
        ([stairs(0.1, 0.01, 0.001), stairs(0.0)], "log"),
        ([half_cosine, half_cosine], "linear"),
        ([stairs(0.1), half_cosine], "linear"),
        ([stairs(0.1), stairs(0.0)], "linear"),
    ],
)
def test_rates_that_differ_by_factors_are_told_apart_whatever_other_runs_do(rates, scale, monkeypatch):
    runs = [book(f"r{i}", make_rows(30, rate=rate)) for i, rate in enumerate(rates)]
    (figure,) = drawn_runs(runs, monkeypatch)
    panel = figure.axes[1]
    assert panel.get_yscale() == scale
    low, high = panel.get_ylim()
    assert high > max(rate(epoch) for rate in rates for epoch in range(1, 31))
    if scale == "log":
        assert 0 < low < 0.001
        places = [panel.transAxes.inverted().transform(panel.transData.transform((1, y)))[1] for y in (0.001, 0.01)]
        assert places[1] - places[0] > 0.15  # of the height of the panel


def test_equal_runs_give_equal_bytes():
    assert draw_runs([book("a", make_rows(3))]) == draw_runs([book("a", make_rows(3))])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_rows(), any_rows())
@example([], make_rows(2, rate=lambda epoch: 5e-324 if epoch == 2 else 1.0))
@example(make_rows(2, scale=5e-324, rate=lambda epoch: 5e-324 * epoch), make_rows(1, rate=lambda epoch: 3e38))
def test_any_rows_make_a_table_and_a_picture(one, other):
    runs = [book("a", one), book("日本", other)]
    assert len(RunsTable(runs).as_text().splitlines()) == 11
    assert read_png(draw_runs(runs)).shape[1] == 1600


def test_a_logbook_is_what_the_files_say(here):
    run = read_logbook(here / "done")
    assert run.rows == make_rows(5, test_error=0.125, rate=lambda epoch: 0.1 / epoch)
    assert (run.n_epochs, run.parameters, run.flags["lr"], run.test_error) == (5, 700, 0.1, 0.125)


def config(content):
    """A preparation: other contents of a config.json, text or what is written as JSON."""
    return placed("done/config.json", content if isinstance(content, str) else json.dumps(content))


def results(content):
    """A preparation: other contents of a results.csv."""
    return placed("done/results.csv", content)


TABLE = to_csv(make_rows(3)).encode()
ONE, TWO = ["compare", "done"], ["compare", "done", "going"]
GOOD = {"n_epochs": 5}
BAD = [
    (nothing, ["compare"], "RUNS is needed: a path, one or more"),
    (nothing, ["compare", ""], "RUNS is '', but must be a path"),
    (nothing, [*TWO, "--save=x"], "unknown flag '--save'"),
    (nothing, [*TWO, "--plot"], "--plot needs a value"),
    (nothing, [*TWO, "done"], "RUNS names one run twice: done and done"),
    (nothing, [*TWO, "./going/"], "RUNS names one run twice: going and going"),
    (nothing, [*TWO, "going/../done"], "RUNS names one run twice: done and going/../done"),
    (linked("same", "done"), [*TWO, "same"], "RUNS names one run twice: done and same"),
    (nothing, [*TWO, "."], "RUNS names one run twice: done and done"),
    (nothing, ["compare", "nowhere"], "nowhere holds no run: there is no config.json in it"),
    (nothing, ["compare", "nowhere", "going/results.csv"], "nowhere holds no run"),
    (nothing, ["compare", "done/results.csv"], "done/results.csv holds no run"),
    (nothing, ["compare", "x" * 300], "File name too long"),
    (nothing, [*TWO, "--plot=p.jpg"], "--plot is 'p.jpg', but must be a file name that ends in .png"),
    (nothing, [*TWO, "--plot=no/p.png"], "--plot no/p.png cannot be written"),
    (placed("t.csv", b""), [*TWO, "--csv=t.csv"], "--csv t.csv exists already"),
    (config("pipe"), ONE, "done/config.json cannot be read: it is not a file"),
    (config("terabyte"), ONE, "done/config.json cannot be read: it has more than 1,000,000 bytes"),
    (config("{"), ONE, "done/config.json cannot be read: "),
    (config("[" * 100_000), ONE, "done/config.json cannot be read: "),
    (config('{"flags": {"n_epochs": ' + "9" * 5000 + "}}"), ONE, "done/config.json cannot be read: "),
    (config([1]), ONE, "done/config.json cannot be read: it should hold the flags of the run"),
    (config({"flags": [1]}), ONE, "done/config.json cannot be read: it should hold the flags of the run"),
    (config({"flags": {}, "parameters": 1}), ONE, "its n_epochs should be a whole number, 1 or more"),
    (config({"flags": {"n_epochs": True}, "parameters": 1}), ONE, "its n_epochs should be a whole number, 1 or more"),
    (config({"flags": {"n_epochs": "5"}, "parameters": 1}), ONE, "its n_epochs should be a whole number, 1 or more"),
    (config({"flags": GOOD}), ONE, "its parameters should be a whole number, 1 or more"),
    (config({"flags": GOOD, "parameters": 1e400}), ONE, "its parameters should be a whole number, 1 or more"),
    (config({"flags": GOOD | {"lr": [0.1]}, "parameters": 1}), ONE, "its flag 'lr' should be text, a number"),
    (config({"flags": GOOD | {"a\nb": {}}, "parameters": 1}), ONE, r"its flag 'a\nb' should be text, a number"),
    (results("folder"), ONE, "done/results.csv cannot be read: it is not a file"),
    (results("terabyte"), ONE, "done/results.csv cannot be read: it has more than 50,000,000 bytes"),
    (results(b""), ONE, "done/results.csv is no table of epochs: line 1 names the column epoch nowhere"),
    (results(b"\xff\xfe"), ONE, "done/results.csv cannot be read: 'utf-8' codec"),
    (results(b"a\0b"), ONE, "done/results.csv is no table of epochs: line 1"),
    (results(TABLE.replace(b"0.8,", b"nan,")), ONE, "line 2: train_error is 'nan', but must be a number from 0 to 1"),
    (results(TABLE.replace(b"1.6,", b"1e300,")), ONE, "line 2: train_loss is '1e300'"),
    (results(TABLE.replace(b"seconds,", b"")), ONE, "line 1 names the column seconds nowhere"),
    (results(TABLE[:-40]), ONE, "line 4 has"),
]


@pytest.mark.parametrize(("prepare", "words", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_one_line_and_stays_as_it_was(prepare, words, message, here, capsys):
    prepare(here)
    assert_refused(*words, message=message, folder=here, capture=capsys)


@pytest.mark.parametrize(
    ("prepare", "word", "reason"),
    [
        (nothing, "nowhere", "nowhere holds no run: there is no config.json in it"),
        (placed("no\x1b[2Jrun", "folder"), "no\x1b[2Jrun", r"no\x1b[2Jrun holds no run: there is no config.json in it"),
        (nothing, "x" * 300, "File name too long"),
        (placed("begun/config.json", "pipe"), "begun", "begun/config.json cannot be read: it is not a file"),
        (placed("begun/results.csv", b""), "begun", "begun/results.csv is no table of epochs: line 1"),
    ],
)
def test_one_folder_that_is_no_run_keeps_no_other_from_being_compared(prepare, word, reason, here, capsys):
    prepare(here)
    assert run_here("compare", "done", word, "going", "--csv=t.csv", "--plot=p.png") == 1
    out, error = capsys.readouterr()
    assert out.splitlines()[0].split() == ["run", "done", "going"]
    warning, last = error.splitlines()
    assert warning.startswith("warning: ")
    assert reason in warning
    assert last == "demo.py compare: error: 1 of 3 folders could not be read as runs"
    assert [row["run"] for row in read_csv(here / "t.csv")] == ["done", "going"]
    assert (here / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_of_runs_stands_for_the_runs_directly_below_it(here, capsys):
    (here / "begun/notes").mkdir()
    make_run(here / "begun/notes/deeper", make_rows(1))
    assert run_here("compare", ".", "--csv=t.csv") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "begun", "done", "going"]
    assert [row["run"] for row in read_csv(here / "t.csv")] == ["begun", "done", "going"]
    assert run_here("compare", str(here / "begun/notes")) == 0  # one of them is enough, as one run is
    assert capsys.readouterr().out.splitlines()[0].split()[1].endswith("deeper")


def test_more_runs_than_can_be_told_apart_are_a_table_but_no_picture(here, capsys):
    names = [f"r{i}" for i in range(MOST_RUNS + 1)]
    for name in names:
        make_run(here / name, make_rows(1))
    assert run_here("compare", *names) == 0
    capsys.readouterr()
    assert run_here("compare", *names, "--plot=p.png", "--csv=t.csv") == 2
    assert not (here / "t.csv").exists()
    message = f"demo.py compare: error: --plot cannot tell {MOST_RUNS + 1} runs apart; name at most {MOST_RUNS}\n"
    assert capsys.readouterr() == ("", message)
    assert not (here / "p.png").exists()


def test_names_that_are_no_text_can_be_printed_and_drawn(here):
    make_run(here / "r\udcff", make_rows(2), note="a\u202eb\n\x1b[31m")
    program = [sys.executable, str(ROOT / "demo.py"), "compare", "done", "r\udcff", "--plot=p.png", "--csv=t.csv"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert " r\\udcff\n" in result.stdout
    assert r"a\u202eb\n\x1b[31m" in result.stdout
    assert b"\nr\xff," in (here / "t.csv").read_bytes()


def test_a_table_needs_neither_torch_nor_matplotlib(here):
    program = (
        "import sys, demo; demo.main(['compare', 'done', 'going']); "
        "assert not {'torch', 'matplotlib', 'numpy', 'tensorboard'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
