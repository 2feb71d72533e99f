"""Names that move the cursor, add a line or are not valid text: escaped on a terminal, byte for byte in files."""

import csv
import io
import json
import os

import numpy as np

from commands.evaluate.confusion_counts import ConfusionCounts
from tests.support.application import run_here
from tests.support.synthetic_images import encoded, picture, write
from tests.support.synthetic_runs import make_rows, make_run

TITLE = "a\x1b[2J\x1b]0;title\x07"
SHOWN = r"a\x1b[2J\x1b]0;title\x07"
SMALL = ["--dataset=folder", "--depth=10", "--growth_rate=2", "--batch_size=16", "--seed=3", "--n_epochs=1"]


def images(folder, *names):
    for name in names:
        write(folder / name, encoded(picture(32, 32), "PNG"))


def assert_printable(*texts):
    """All characters on all lines are printable."""
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))


def test_predict_prints_a_line_for_each_file_whatever_its_name(here, capsys):
    images(here / TITLE, "b.png")
    images(here, "nl\nerror: fake.png")
    write(here / "bad\x1b[31m.png", b"")
    words = [TITLE, "nl\nerror: fake.png", "bad\x1b[31m.png"]
    assert run_here("predict", "--save=run", *words, "--csv=t.csv") == 1
    out, error = capsys.readouterr()
    assert_printable(out, error)
    first, second = out.splitlines()
    assert first.startswith(f"{SHOWN}/b.png ")
    assert second.startswith(r"nl\nerror: fake.png ")
    assert error.splitlines()[0].startswith(r"error: bad\x1b[31m.png cannot be read as an image")
    assert len(error.splitlines()) == 2
    with (here / "t.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"{TITLE}/b.png", "nl\nerror: fake.png"]


def test_a_long_name_pads_no_other_line(here, capsys):
    long = "x" * 200 + ".png"
    images(here, "a.png", "bb.png", long)
    assert run_here("predict", "--save=run", "a.png", "bb.png", long) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[0]) == len(lines[1]) == len(lines[2]) - len(long) + len("bb.png")
    assert lines[2].startswith(f"{long}  ")


def test_words_after_two_dashes_are_files(here, capsys):
    images(here, "-x.png", "--top")
    assert run_here("predict", "-x.png", "--save=run") == 2
    hint = "unknown flag '-x.png'; write ./-x.png if it is a file, or put -- before all files\n"
    assert capsys.readouterr().err == f"demo.py predict: error: {hint}"
    assert run_here("predict", "--save=run", "./-x.png", "--", "-x.png", "--top") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["-x.png", "-x.png", "--top"]
    assert run_here("predict", "--save=run", "--", "--help") == 2
    assert "there is no file --help" in capsys.readouterr().err


def test_notes_errors_and_tracebacks_of_train_are_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for use, names in (("train", [TITLE, "b"]), ("test", ["b"])):
        for name in names:
            images(tmp_path / f"data/{use}" / name, "0.png", "1.png", "2.png")
    assert run_here(*SMALL, "--data=data", "--valid_size=2", "--save=run") == 0
    out, error = capsys.readouterr()
    assert_printable(out, error)
    assert f"data/test has no image of 1 of 2 classes: {SHOWN}" in out.splitlines()

    write(tmp_path / "data/test/b/nl\nerror: \x1b[31m.png", b"")
    assert run_here(*SMALL, "--data=data", "--valid_size=2", f"--save={TITLE}", "--debug") == 2
    out, error = capsys.readouterr()
    assert_printable(out, error)
    assert "Traceback (most recent call last):" in error.splitlines()
    last = error.splitlines()[-1]
    assert last.startswith(r"demo.py: error: data/test/b/nl\nerror: \x1b[31m.png cannot be read as an image")


def test_names_of_classes_are_written_as_they_are_on_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for use in ("train", "test"):
        for folder in ("caf\udce9", "a\rb\nc", "=1+1\x7f", "日本"):
            images(tmp_path / f"data/{use}" / folder, "0.png", "1.png")
    assert run_here(*SMALL, "--data=data", "--valid_size=2", "--save=run") == 0
    assert_printable(*capsys.readouterr())
    assert run_here("evaluate", "--save=run", "--csv=classes.csv", "--json=-", "--predictions=all.npz") == 0
    out, error = capsys.readouterr()
    assert_printable(out, error)
    assert run_here("predict", "--save=run", "data/test", "--csv=files.csv", "--top=4") == 0
    assert_printable(*capsys.readouterr())
    on_disk = {os.fsencode(entry.name) for entry in os.scandir("data/test")}
    assert b"caf\xe9" in on_disk
    content = (tmp_path / "classes.csv").read_bytes()
    cells = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    header, *rows = ([os.fsencode(cell) for cell in line] for line in cells)
    assert {row[0] for row in rows} == on_disk
    assert set(header[3:]) == {b"predicted " + name for name in on_disk}
    assert all((tmp_path / "files.csv").read_bytes().count(name) >= 8 for name in on_disk)
    with np.load("all.npz", allow_pickle=False) as answers:
        assert [os.fsencode(str(name)) in on_disk for name in answers["classes"]] == [True] * 4
        assert {os.fsencode(str(path)) for path in answers["paths"]} == {
            name + b"/" + file for name in on_disk for file in (b"0.png", b"1.png")
        }
    assert {os.fsencode(row["class"]) for row in json.loads(out)["classes"]} == on_disk


def test_a_result_is_printed_even_if_its_file_cannot_be_written(here, monkeypatch, capsys):
    add = ConfusionCounts.add

    def put_in_the_way(self, logits, labels):
        (here / "t.csv").write_bytes(b"theirs")
        add(self, logits, labels)

    monkeypatch.setattr(ConfusionCounts, "add", put_in_the_way)
    assert run_here("evaluate", "--save=run", "--csv=t.csv") == 1
    out, error = capsys.readouterr()
    assert "\ntest error " in out
    assert error == "demo.py evaluate: error: t.csv cannot be written: File exists\n"
    assert (here / "t.csv").read_bytes() == b"theirs"


def test_the_folder_of_a_download_is_escaped(tmp_path, server, capsys):
    words = ["--dataset=cifar10", f"--data={tmp_path / TITLE}", f"--save={tmp_path / 'run'}"]
    assert run_here(*words) == 1  # there is nothing at the address
    out, error = capsys.readouterr()
    assert_printable(out, error)
    assert out.startswith("Downloading https://")
    assert SHOWN in out


def test_compare_shows_names_of_runs_escaped(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / TITLE, make_rows(2))
    monkeypatch.chdir(tmp_path)
    assert run_here("compare", TITLE, "--csv=t.csv") == 0
    out, error = capsys.readouterr()
    assert_printable(out, error)
    assert out.splitlines()[0].split() == ["run", SHOWN]
    assert os.fsencode(TITLE) in (tmp_path / "t.csv").read_bytes()
