"""`python demo.py compare`: runs side by side."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

from commands.compare.flags import differing_flags
from commands.compare.plot import MOST_RUNS
from commands.compare.table import RunsTable
from commands.run_record import read_record
from tests.support.application import ROOT, assert_refused, everything_in, read_csv, run_here
from tests.support.run_preparations import linked, nothing, placed
from tests.support.synthetic_runs import any_rows, make_record, make_rows, make_run, num_shades, read_png
from train.run.history import to_csv


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with three runs: done, going on without validation images, and just begun."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "done", make_rows(5, test_error=0.125, rate=lambda epoch: 0.1 / epoch))
    make_run(tmp_path / "going", make_rows(3, valid=False), lr=0.05, wd=None, data="elsewhere")
    make_run(tmp_path / "begun", None, depth=16, parameters=123456)
    return tmp_path


def test_the_table_shows_which_flags_differ_and_how_far_each_run_is(here, capsys):
    before = everything_in(here)
    assert run_here("compare", "done", "going", "begun") == 0
    assert capsys.readouterr().out == (
        "run                    done      going      begun\n"
        "network           L=10, k=2  L=10, k=2  L=16, k=2\n"
        "data set             digits     digits     digits\n"
        "--lr                    0.1       0.05        0.1\n"
        "--wd                 0.0001       None     0.0001\n"
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


def test_new_files_hold_table_and_plot(here):
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
    pixels = read_png((here / "p.png").read_bytes())
    assert pixels.shape[1] == 1600
    assert num_shades(pixels) > 50


def test_one_run_is_enough_for_a_table(here, capsys):
    assert run_here("compare", "done") == 0
    assert "--" not in capsys.readouterr().out


def test_a_missing_flag_has_its_default_and_one_that_this_version_lacks_is_a_difference():
    runs = [
        make_record("a", [], lr=0.1, width=3, seed=1, save="a"),
        make_record("b", [], seed=1, save="b"),
        make_record("c", [], lr=0.1, width=3, seed=1),
    ]
    assert differing_flags(runs, not_compared={"save"}) == ["width"]
    assert differing_flags(runs, not_compared=()) == ["width", "save"]
    assert differing_flags(runs[:1], not_compared=()) == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_rows(), any_rows())
def test_any_rows_make_a_table(one, other):
    table = RunsTable([make_record("a", one), make_record("日本", other)], not_compared=())
    assert len(table.as_lines("text")) == 11


def test_a_record_holds_what_the_files_say(here):
    run = read_record(here / "done")
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
    (nothing, [*TWO, "--format=html"], "--format is 'html', but must be text | markdown | latex | json"),
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
def test_a_folder_that_is_no_run_does_not_keep_others_from_being_compared(prepare, word, reason, here, capsys):
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


def test_a_folder_of_runs_stands_for_the_runs_in_it_but_not_inside_of_them(here, capsys):
    (here / "begun/notes").mkdir()
    make_run(here / "begun/notes/deeper", make_rows(1))
    assert run_here("compare", ".", "--csv=t.csv") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "begun", "done", "going"]
    assert [row["run"] for row in read_csv(here / "t.csv")] == ["begun", "done", "going"]
    assert run_here("compare", str(here / "begun/notes")) == 0  # one of them is enough, as one run is
    assert capsys.readouterr().out.splitlines()[0].split()[1].endswith("deeper")


def test_runs_are_found_in_folders_of_folders_and_in_the_order_of_numbers(here, capsys):
    names = ["x/a/seed-2", "x/a/seed-10", "x/b/wd/seed-1", "x/c"]
    for name in reversed(names):
        make_run(here / name, make_rows(1))
    make_run(here / "x/b/too/far/down", make_rows(1))
    (here / "x/notes.txt").write_text("no run")
    assert run_here("compare", "x") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1:] == names


def test_more_runs_than_can_be_told_apart_are_a_table_but_no_plot(here, capsys):
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


def test_names_that_are_not_valid_text_can_be_printed_and_plotted(here):
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
