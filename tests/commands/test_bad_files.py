"""Files and folders that cannot be used: one line and an exit code for each, and no file has changed."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from tests.support.application import ROOT, SMALL, everything_in, run_here
from tests.support.run_preparations import linked, nothing, placed, put, recorded, without
from tests.support.synthetic_datasets import make_cifar10


def checkpoint_with(**parts):
    """A preparation: other parts of both checkpoints, which stay intact files."""

    def prepare(here):
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            content = torch.load(here / "run" / name, weights_only=True)
            changed = {part: change(content[part]) if callable(change) else change for part, change in parts.items()}
            torch.save(content | changed, here / "run" / name)

    return prepare


def both(content):
    """A preparation: both checkpoints are replaced by the same content."""

    def prepare(here):
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            put(here / "run" / name, content)

    return prepare


NEW = [*SMALL, "--n_epochs=1", "--save=new"]
RESUME = ["--save=run", "--resume"]
DATA = [word for word in NEW if "dataset" not in word] + ["--dataset=cifar10", "--data=data"]
MEASURE = ["benchmark", "--depth=10", "--rounds=0"]

SAVE = [
    (placed("new", "mine"), NEW, 2, "--save is 'new', but must be a folder, not a file"),
    (placed("new", "mine"), [*NEW, "--resume"], 2, "--save is 'new', but must be a folder, not a file"),
    (placed("new", "pipe"), NEW, 2, "--save is 'new', but must be a folder, not a file"),
    (placed("file", "mine"), [*SMALL, "--save=file/new"], 2, "--save file/new cannot be written: Not a directory"),
    (linked("new", "new"), NEW, 2, "--save new cannot be written"),
    (linked("new", "nowhere"), NEW, 2, "--save new cannot be written"),
    (nothing, [*SMALL, "--save=" + "x" * 256], 2, "cannot be written: File name too long"),
    (nothing, [*SMALL, "--save=" + "x/" * 3000], 2, "cannot be written: File name too long"),
    (nothing, [*SMALL, "--save=" + "x" * 256, "--resume"], 2, "File name too long"),
    (nothing, [*SMALL, "--save=/proc/new"], 2, "--save /proc/new cannot be written"),
    (nothing, [*SMALL, "--save=\ud800"], 2, "must be a path"),
    (placed("new/.lock", "folder"), NEW, 2, "--save new cannot be written: Is a directory"),
    (placed("new/.checkpoint.pt.tmp", "folder"), NEW, 2, "--save new cannot be cleared of a killed run"),
    (nothing, [*SMALL, "--save=run"], 2, "--save run already holds a run (config.json"),
    (without("config.json"), RESUME, 2, "but no config.json, so it cannot be continued"),
    (without("checkpoint.pt", "checkpoint.previous.pt"), RESUME, 2, "but no checkpoint.pt, so it cannot be continued"),
    (without("config.json", "checkpoint.pt", "checkpoint.previous.pt"), RESUME, 2, "but no config.json"),
    (placed("new/model.pt", "mine"), NEW, 2, "--save new already holds a run (model.pt)"),
    (placed("new/model.pt", "mine"), [*NEW, "--resume"], 2, "--save new holds model.pt but no config.json"),
]

CONFIG: list[tuple[str | bytes, str]] = [
    ("folder", "it is not a file"),
    ("pipe", "it is not a file"),
    ("terabyte", "config.json cannot be read: "),
    (b"", "config.json cannot be read: "),
    (b"\xff\xfe\x00", "config.json cannot be read: "),
    (b'{"flags": {"data": "\xff"}}', "config.json cannot be read: "),
    ("[" * 100_000, "config.json cannot be read: "),
    ('{"flags":' * 20_000, "config.json cannot be read: "),
    ('{"flags": {"depth": ' + "9" * 5000 + "}}", "config.json cannot be read: "),
    ("null", "config.json cannot be read: "),
    ("NaN", "config.json cannot be read: "),
    ('"flags"', "config.json cannot be read: "),
    ('["flags"]', "config.json cannot be read: "),
    ("{}", "config.json cannot be read: "),
    (
        '{"name": "another program", "version": "1.0"}',
        "config.json cannot be read: it should hold",
    ),
    ('{"flags": null}', "config.json cannot be read: "),
    ('{"flags": ["--depth", 10]}', "config.json cannot be read: "),
    ('{"flags": "--depth 10"}', "config.json cannot be read: "),
    ('{"flags": {"entry": "main.js"}}', "config.json cannot be used: unknown flag 'entry'"),
    (
        '{"flags": {"depth": {"depth": {"depth": [[[10]]]}}}}',
        "its flag 'depth' should be text",
    ),
    ('{"flags": {"": 1}}', "config.json cannot be used: unknown flag ''"),
    ('{"flags": {"\\n\\n": 1}}', "config.json cannot be used: unknown flag '\\n\\n'"),
    ('{"flags": {"dataset": "digits", "dep\\nth": "1\\n2"}}', "unknown flag"),
]

FLAGS: list[tuple[dict[str, object], str]] = [
    ({"depth": "ten"}, "--depth is 'ten'"),
    ({"depth": 10.5}, "--depth is '10.5'"),
    ({"depth": [10]}, "its flag 'depth' should be text"),
    ({"depth": True}, "--depth is 'True'"),
    ({"depth": 10**40}, "--depth is '1000"),
    ({"growth_rate": -1}, "--growth_rate is '-1'"),
    ({"batch_size": 1e400}, "--batch_size is 'inf'"),
    ({"n_epochs": float("nan")}, "--n_epochs is 'nan'"),
    ({"lr": float("nan")}, "--lr is 'nan'"),
    ({"lr": float("inf")}, "--lr is 'inf'"),
    ({"lr": "fast"}, "--lr is 'fast'"),
    ({"wd": {"value": 1}}, "its flag 'wd' should be text"),
    ({"momentum": 1e308}, "--momentum is '1e+308'"),
    ({"drop_rate": True}, "--drop_rate is 'True'"),
    ({"efficient": "maybe"}, "--efficient is 'maybe'"),
    ({"augment": 2}, "--augment is '2'"),
    ({"augment": "None "}, "--augment is 'None '"),
    ({"download": []}, "its flag 'download' should be text"),
    ({"debug": "loud"}, "--debug is 'loud'"),
    ({"dataset": 10}, "--dataset is '10'"),
    ({"dataset": "imagenet"}, "--dataset is 'imagenet'"),
    ({"data": "a\0b"}, "--data is 'a\\x00b'"),
    ({"data": "\ud800"}, "--data is '\\ud800'"),
    ({"data": " "}, "--data is ' '"),
    ({"seed": 2**63}, f"--seed is '{2**63}'"),
    ({"seed": {}}, "its flag 'seed' should be text"),
    ({"valid_size": -1}, "--valid_size is '-1'"),
    ({"valid_size": 0.5}, "--valid_size is '0.5'"),
]

CHECKPOINTS = [
    (both("folder"), "checkpoint.pt cannot be read: it is not a file"),
    (placed("run/checkpoint.pt", "folder"), "checkpoint.pt cannot be read: it is not a file"),
    (placed("run/checkpoint.pt", "pipe"), "checkpoint.pt cannot be read: it is not a file"),
    (both("terabyte"), "checkpoint.pt is damaged"),
    (both(b""), "checkpoint.pt is damaged"),
    (both("epoch,train_loss\n"), "checkpoint.pt is damaged"),
    (both(b"PK\x05\x06" + bytes(18)), "checkpoint.pt is damaged"),
    (both(b"PK\x03\x04" + bytes(200)), "checkpoint.pt is damaged"),
    (checkpoint_with(format=5), "is of a newer version of this program (format 5; this one reads 4)"),
    (checkpoint_with(format=None), "is no checkpoint of this program: its format is None"),
    (checkpoint_with(format="1"), "is no checkpoint of this program: its format is '1'"),
    (checkpoint_with(rows=[]), "is no checkpoint of this program: it has no epochs"),
    (checkpoint_with(rows=None), "is no checkpoint of this program"),
    (checkpoint_with(rows=[{"epoch": 1}]), "is no checkpoint of this program"),
    (checkpoint_with(rows=lambda rows: [row | {"test_error": "low"} for row in rows]), "are not those of a run"),
    (checkpoint_with(rows=lambda rows: [row | {"train_loss": None} for row in rows]), "are not those of a run"),
    (checkpoint_with(rows=lambda rows: [row | {"epoch": 7} for row in rows]), "are not those of a run"),
    (checkpoint_with(rows=lambda rows: rows * 2), "are not those of a run"),
    (checkpoint_with(network=torch.ones(3)), "is no checkpoint of this program"),
    (checkpoint_with(network=None), "is no checkpoint of this program"),
    (checkpoint_with(optimizer=3), "is no checkpoint of this program"),
]

IMAGES = [
    (placed("data", "mine"), [*DATA, "--download=False"], 2, "the data folder data is not a folder"),
    (placed("data", "mine"), DATA, 2, "the data folder data is not a folder"),
    (placed("file", "mine"), [*DATA[:-1], "--data=file/data"], 2, "cannot use the data folder file/data"),
    (nothing, [*DATA, "--download=False"], 2, "the data folder data does not exist"),
    (nothing, DATA, 1, "cannot download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    (placed("data/cifar-10-python.tar.gz", "no archive"), DATA, 2, "cifar-10-python.tar.gz is corrupted"),
    (placed("data/cifar-10-python.tar.gz", "folder"), DATA, 2, "cifar-10-python.tar.gz is not a file"),
    (placed("data/cifar-10-python.tar.gz", "pipe"), DATA, 2, "cifar-10-python.tar.gz is not a file"),
    (placed("data/cifar-10-batches-py", "mine"), [*DATA, "--download=False"], 2, "data_batch_1"),
    (placed("data/cifar-10-batches-py/data_batch_1", b""), DATA, 2, "data_batch_1 is corrupted"),
    (placed("data/cifar-10-batches-py/test_batch", "folder"), DATA, 2, "test_batch is not a file"),
    (nothing, [*DATA[:-1], "--data=" + "x" * 256], 2, "File name too long"),
    (nothing, DATA[:-1], 2, "--dataset cifar10 needs --data FOLDER"),
]

PRODUCTS = [
    (placed("p.png", "mine"), [*MEASURE, "--plot=p.png"], 2, "--plot p.png exists already"),
    (placed("p.png", "folder"), [*MEASURE, "--plot=p.png"], 2, "--plot p.png exists already"),
    (linked("p.png", "nowhere"), [*MEASURE, "--plot=p.png"], 2, "--plot p.png exists already"),
    (nothing, [*MEASURE, "--plot=no/p.png"], 2, "--plot no/p.png cannot be written: No such file or directory"),
    (placed("file", "mine"), [*MEASURE, "--plot=file/p.png"], 2, "--plot file/p.png cannot be written: Not a dir"),
    (nothing, [*MEASURE, "--plot=/proc/p.png"], 2, "--plot /proc/p.png cannot be written"),
    (nothing, [*MEASURE, f"--plot={'x' * 256}.png"], 2, "cannot be written: File name too long"),
    (nothing, [*MEASURE, "--plot=p.jpg"], 2, "--plot is 'p.jpg', but must be a file name that ends in .png"),
    (nothing, [*MEASURE, "--plot=."], 2, "--plot is '.', but must be a file name that ends in .png"),
    (nothing, [*MEASURE, "--plot=\ud800.png"], 2, "--plot is"),
    (placed("t.csv", "mine"), [*MEASURE, "--csv=t.csv"], 2, "--csv t.csv exists already"),
    (nothing, [*MEASURE, "--csv=no/t.csv"], 2, "--csv no/t.csv cannot be written: No such file or directory"),
    (nothing, [*MEASURE, "--csv=t.png"], 2, "--csv is 't.png', but must be a file name that ends in .csv"),
    (placed("t.csv", "mine"), [*MEASURE, "--plot=p.png", "--csv=t.csv"], 2, "--csv t.csv exists already"),
    (placed("p.png", "mine"), [*MEASURE, "--plot=p.png", "--csv=t.csv"], 2, "--plot p.png exists already"),
]

BAD = [
    *SAVE,
    *[(placed("run/config.json", content), RESUME, 2, message) for content, message in CONFIG],
    *[(recorded(**flags), RESUME, 2, message) for flags, message in FLAGS],
    *[(prepare, RESUME, 2, message) for prepare, message in CHECKPOINTS],
    *IMAGES,
    *PRODUCTS,
    (placed("run/results.csv", "folder"), RESUME, 1, "cannot write run/results.csv: Is a directory"),
    (recorded(n_epochs=0), RESUME, 2, "--n_epochs is '0'"),
    (nothing, [*RESUME, "--depth=16"], 2, "--depth is 16, but the run in run has 10"),
]


@pytest.mark.parametrize(("prepare", "words", "code", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_one_line_and_stays_as_it_was(prepare, words, code, message, here, capsys):
    prepare(here)
    before = everything_in(here)
    assert run_here(*words) == code
    out, error = capsys.readouterr()
    assert re.fullmatch(r"demo\.py( benchmark)?: error: [^\n]+\n", error)
    assert message in error
    assert re.fullmatch(r"(Downloading [^\n]+\n)?", out)
    assert everything_in(here) == before


OTHER_RUNS = [
    (checkpoint_with(network={"weight": torch.ones(1)}), "is of another network than its config.json says"),
    (checkpoint_with(network={}), "is of another network than its config.json says"),
    (checkpoint_with(chosen={}), "is of another network than its config.json says"),
    (checkpoint_with(optimizer={}), "is of another optimizer"),
    (checkpoint_with(optimizer={"state": {}, "param_groups": [1]}), "is of another optimizer"),
    (
        recorded(growth_rate=3),
        "is of another run: it was trained with --growth_rate 2, and this run has --growth_rate 3;",
    ),
    (recorded(depth=16), "is of another run: it was trained with --depth 10, and this run has --depth 16; put"),
]


@pytest.mark.parametrize(("prepare", "message"), OTHER_RUNS, ids=range(len(OTHER_RUNS)))
def test_a_checkpoint_of_something_else_is_one_line_and_stays_as_it_was(prepare, message, here, capsys):
    prepare(here)
    before = everything_in(here)
    assert run_here(*RESUME, "--n_epochs=3") == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"demo\.py: error: [^\n]+\n", error)
    assert message in error
    after = everything_in(here)
    for name in ("run/checkpoint.pt", "run/checkpoint.previous.pt"):
        assert after[name] == before[name]
    assert after.keys() == before.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is closed to the administrator")
@pytest.mark.parametrize("words", [NEW, RESUME, [*MEASURE, "--csv=t.csv"]])
def test_a_folder_that_may_not_be_written_is_one_line(words, here, capsys):
    for folder in (here / "run", here):
        folder.chmod(0o500)
    try:
        assert run_here(*words) == 2
    finally:
        for folder in (here, here / "run"):
            folder.chmod(0o700)
    assert re.fullmatch(r"demo\.py( \w+)?: error: --\w+ \S+ cannot be written: [^\n]+\n", capsys.readouterr().err)


HOLDER = """
import pathlib, sys
from train.run.acquire import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_in(folder):
    """Another process holds the lock of a folder."""
    program = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        yield process
        process.stdin.close()


@pytest.mark.parametrize("words", [NEW, ["--save=run"], RESUME, [*RESUME, "--n_epochs=9"]])
def test_a_folder_in_use_is_one_line_that_names_the_process(words, here, capsys):
    folder = here / ("new" if "--save=new" in words else "run")
    folder.mkdir(exist_ok=True)
    with another_process_in(folder) as process:
        before = everything_in(here)
        assert run_here(*words) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(rf"demo\.py: error: --save \w+ is in use by process {process.pid} on [^\n]+\n", error)
        assert everything_in(here) == before
    assert not (folder / ".lock").exists()


def test_a_damaged_file_of_images_is_one_line(here, monkeypatch, capsys):
    made = make_cifar10(here / "data", 60, 20, monkeypatch=monkeypatch)
    for name in made.files:
        contents = (here / "data" / name).read_bytes()
        (here / "data" / name).write_bytes(contents[:-1])
        before = everything_in(here)
        assert run_here(*DATA) == 2
        assert re.fullmatch(rf"demo\.py: error: data/{name} is corrupted: [^\n]+\n", capsys.readouterr().err)
        assert everything_in(here) == before
        (here / "data" / name).write_bytes(contents)


FAILURES = [
    ([*SMALL, "--save=run"], 2, "UserError"),
    ([*DATA, "--download=False"], 2, "MissingData"),
    (DATA, 1, "NoNetwork"),
    ([*MEASURE, "--plot=no/p.png"], 2, "UserError"),
]


@pytest.mark.parametrize(("words", "code", "kind"), FAILURES, ids=range(len(FAILURES)))
def test_debug_shows_the_traceback_before_the_one_line(words, code, kind, here, capsys):
    assert run_here(*words) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert run_here(*words, "--debug", "True") == code
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert f"errors.{kind}: " in error
    assert error.endswith(f"\n{line}")


def test_a_name_that_is_not_valid_text_can_be_printed(here):
    """Old disks have such names; the encoding of the output has no place for their bytes."""
    words = [*RESUME[1:], "--save=r\udcff"]
    (here / "run").rename(here / "r\udcff")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, str(ROOT / "demo.py"), *words]
    result = subprocess.run(line, cwd=here, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "The run in r\\udcff is finished" in result.stdout
