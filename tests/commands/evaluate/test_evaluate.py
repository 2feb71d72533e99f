"""`python demo.py evaluate`: a saved run on its test images."""

import signal

import pytest
import torch

from commands.evaluate.confusion_counts import ConfusionCounts
from tests.support.application import SMALL, assert_refused, everything_in, read_csv, read_results, run_here
from tests.support.run_preparations import changed, nothing, placed, without
from tests.support.synthetic_datasets import make_cifar100
from train.replicas import InPrecision

EVALUATE = ["evaluate", "--save=run"]


def test_the_error_is_the_recorded_one_and_the_plot_lies_in_the_run(here, capsys):
    before = everything_in(here)
    assert run_here(*EVALUATE) == 0
    out, error = capsys.readouterr()
    assert error == ""
    row = read_results(here / "run")[-1]
    lines = out.splitlines()
    epoch = min(read_results(here / "run"), key=lambda row: (float(row["valid_error"]), float(row["valid_loss"])))[
        "epoch"
    ]
    assert lines[0] == f"DenseNet-BC (L=10, k=2) on digits, weights of epoch {epoch}, 2 of 2 epochs done"
    wrong = round(float(row["test_error"]) * 355)
    assert lines[1].startswith(f"test error {float(row['test_error']):.2%} ({wrong} of 355 images), loss ")
    assert "top-5 error" in lines[1]
    assert lines[2] == "the run recorded the same test error"
    assert lines[-1] == (
        "Confusion matrix and reliability diagram are in run/confusion.png; the next evaluation replaces it."
    )
    assert (here / "run/confusion.png").read_bytes()[:4] == b"\x89PNG"
    after = everything_in(here)
    assert after.keys() - before.keys() == {"run/confusion.png"}
    assert {name: after[name] for name in before} == before


def test_the_plot_of_the_run_is_replaced(here):
    (here / "run/confusion.png").write_text("an earlier one")
    assert run_here(*EVALUATE) == 0
    assert (here / "run/confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_plot_that_cannot_be_written_is_refused_before_any_work(here, capsys, monkeypatch):
    (here / "run/confusion.png").mkdir()
    monkeypatch.setattr(ConfusionCounts, "add", None)
    assert run_here(*EVALUATE) == 2
    line = "demo.py evaluate: error: run/confusion.png cannot be written; name another file with --plot\n"
    assert capsys.readouterr() == ("", line)


def test_new_files_hold_table_and_plot_and_the_run_stays_as_it_is(here, capsys):
    before = everything_in(here / "run")
    assert run_here(*EVALUATE, "--batch_size=50", "--plot=c.png", "--csv=t.csv") == 0
    assert everything_in(here / "run") == before
    assert capsys.readouterr().out.endswith("\n\nConfusion matrix and reliability diagram are in c.png.\n")
    assert (here / "c.png").read_bytes()[:4] == b"\x89PNG"
    rows = read_csv(here / "t.csv")
    correct = sum(int(row[f"predicted {row['class']}"]) for row in rows)
    assert sum(int(row["images"]) for row in rows) == 355
    assert 1 - correct / 355 == pytest.approx(float(read_results(here / "run")[-1]["test_error"]))


def test_another_recorded_error_is_a_warning_with_both_errors(here, capsys):
    path = here / "run/results.csv"
    recorded = read_results(here / "run")[-1]["test_error"]
    path.write_text(path.read_text().replace(recorded, "0.015625"))
    assert run_here(*EVALUATE) == 0
    message = f"warning: the run recorded another test error, 1.5625%, and now it is {float(recorded):.4%};"
    assert message in capsys.readouterr().out


def test_the_recorded_error_of_a_dry_run_is_of_fewer_images(here, capsys):
    assert run_here(*SMALL, "--n_epochs=1", "--limit_batches=1", "--save=dry") == 0
    assert (
        "128 training, 128 validation and 128 test images, a dry run by --limit_batches 1\n" in capsys.readouterr().out
    )
    recorded = float(read_results(here / "dry")[-1]["test_error"])
    assert run_here("evaluate", "--save=dry") == 0
    out = capsys.readouterr().out
    assert f"\nthe run recorded {recorded:.2%}, on few test images: it had --limit_batches 1\n" in out
    assert "warning" not in out


def test_a_run_that_is_not_finished_is_measured_as_it_stands(here, capsys):
    path = here / "run/results.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    path.write_text("\n".join(lines[:2]))
    assert run_here(*EVALUATE) == 0
    out = capsys.readouterr().out
    assert cells[5] == ""
    assert "weights of epoch 1, 1 of 2 epochs done\n" in out
    assert "\nthe run has recorded no test error yet\n" in out
    path.unlink()
    assert run_here(*EVALUATE) == 0
    assert "weights of an epoch that is not known, as there is no results.csv\n" in capsys.readouterr().out


def test_a_hundred_classes_from_another_folder(tmp_path, monkeypatch, capsys):
    """The folder that the run was given is gone."""
    make_cifar100(tmp_path / "data", 200, 100, monkeypatch=monkeypatch)
    network = ["--depth=10", "--growth_rate=2", "--batch_size=100", "--n_epochs=1", "--valid_size=0"]
    words = [f"--data={tmp_path / 'data'}", "--dataset=cifar100", f"--save={tmp_path / 'run'}", "--download=False"]
    assert run_here(*network, *words) == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    capsys.readouterr()
    save = f"--save={tmp_path / 'run'}"
    assert run_here("evaluate", save, "--download=False") == 2
    assert f"the data folder {tmp_path / 'data'} does not exist" in capsys.readouterr().err
    assert run_here("evaluate", save, f"--data={tmp_path / 'moved'}", "--download=False") == 0
    out = capsys.readouterr().out
    assert "the run recorded the same test error" in out
    assert "largest confusions:" in out


def test_a_run_is_measured_in_its_own_precision(here, monkeypatch):
    changed(flags={"precision": "bf16"})(here)
    forward, dtypes = InPrecision.forward, set()

    def recording(self, images):
        dtypes.add(self.dtype)
        return forward(self, images)

    monkeypatch.setattr(InPrecision, "forward", recording)
    assert run_here(*EVALUATE) == 0
    assert dtypes == {torch.bfloat16}


def test_ctrl_c_is_one_line_and_nothing_is_written(here, monkeypatch, capsys):
    add = ConfusionCounts.add

    def interrupted(self, logits, labels):
        add(self, logits, labels)
        signal.raise_signal(signal.SIGINT)

    before = everything_in(here)
    monkeypatch.setattr(ConfusionCounts, "add", interrupted)
    assert run_here(*EVALUATE) == 130
    assert capsys.readouterr() == ("", "demo.py evaluate: stopped by SIGINT\n")
    assert everything_in(here) == before


def weights(content):
    """A preparation: other weights."""
    return lambda here: torch.save(content, here / "run/model.pt")


BAD = [
    (nothing, ["evaluate"], "--save or --weights is needed; see --help"),
    (nothing, [*EVALUATE, "run"], "stray word 'run'"),
    (nothing, [*EVALUATE, "--depth=10"], "--depth is for --weights; the run in --save has its own"),
    (nothing, [*EVALUATE, "--batch_size=0"], "--batch_size is '0'"),
    (nothing, ["evaluate", "--save=nowhere"], "--save nowhere does not exist"),
    (nothing, ["evaluate", "--save=run/model.pt"], "--save is 'run/model.pt', but must be a folder, not a file"),
    (nothing, ["evaluate", "--save=" + "x" * 300], "File name too long"),
    (nothing, [*EVALUATE, "--plot=t.jpg"], "--plot is 't.jpg', but must be a file name that ends in .png"),
    (nothing, [*EVALUATE, "--plot=run"], "--plot is 'run'"),
    (nothing, [*EVALUATE, "--csv=no/t.csv"], "--csv no/t.csv cannot be written"),
    (placed("t.csv", b"mine"), [*EVALUATE, "--csv=t.csv"], "--csv t.csv exists already"),
    (placed("p.png", b"mine"), [*EVALUATE, "--plot=p.png"], "--plot p.png exists already"),
    (without("model.pt"), EVALUATE, "model.pt"),
    (placed("run/model.pt", b""), EVALUATE, "model.pt is damaged"),
    (placed("run/model.pt", b"text"), EVALUATE, "model.pt is damaged"),
    (weights({"weight": torch.ones(1)}), EVALUATE, "of another network than its config.json says"),
    (weights([1]), EVALUATE, "model.pt"),
    (without("config.json"), EVALUATE, "run holds no run"),
    (placed("run/config.json", "pipe"), EVALUATE, "config.json cannot be read"),
    (placed("run/config.json", b""), EVALUATE, "run/config.json"),
    (placed("run/config.json", b"[" * 100_000), EVALUATE, "run/config.json"),
    (placed("run/config.json", b"\xff"), EVALUATE, "run/config.json"),
    (placed("run/config.json", b'{"flags": 3}'), EVALUATE, "run/config.json"),
    (changed(flags={"depth": 10**9}), EVALUATE, "run/config.json"),
    (changed(flags={"depth": 11}), EVALUATE, "run/config.json"),
    (changed(flags={"depth": 16}), EVALUATE, "of another network than its config.json says"),
    (changed(flags={"dataset": "imagenet"}), EVALUATE, "run/config.json"),
    (changed(flags={"dataset": "svhn", "data": None}), EVALUATE, "--dataset svhn needs --data FOLDER"),
    (changed(flags={"data": "a\0b", "dataset": "cifar10"}), EVALUATE, "run/config.json"),
    (changed(flags={"data": {"a": 1}}), EVALUATE, "run/config.json"),
    (changed(mean=[1, 2]), EVALUATE, "run/config.json"),
    (changed(std="wide"), EVALUATE, "run/config.json"),
    (changed(flags={"n_epochs": "many"}), EVALUATE, "run/config.json"),
    (placed("run/results.csv", b"epoch\n1\n"), EVALUATE, "run/results.csv is no table of epochs: line 1"),
]


@pytest.mark.parametrize(("prepare", "words", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_one_line_and_stays_as_it_was(prepare, words, message, here, capsys):
    prepare(here)
    assert_refused(*words, message=message, folder=here, capture=capsys)


def test_a_plot_that_cannot_be_written_any_more_is_one_line_after_the_table(here, capsys, monkeypatch):
    add = ConfusionCounts.add

    def put_in_the_way(self, logits, labels):
        (here / "run/confusion.png").mkdir(exist_ok=True)
        add(self, logits, labels)

    monkeypatch.setattr(ConfusionCounts, "add", put_in_the_way)
    assert run_here(*EVALUATE) == 1
    out, error = capsys.readouterr()
    assert "the run recorded the same test error" in out
    assert error.startswith("demo.py evaluate: error: cannot write run/confusion.png: Is a directory")
    assert error.count("\n") == 1
