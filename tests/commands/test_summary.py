"""results.json: what a finished run has reached, in its folder as long as it is finished."""

import json
import os
import shlex
import signal
import sys
from datetime import datetime

import pytest

from commands.provenance import VERSION, command_line, git_revision
from models import densenet_bc
from tests.support.application import SMALL, read_results, run_here
from train.signals import Stopped


def read(folder):
    return json.loads((folder / "results.json").read_text())


KEYS = [
    "format",
    "test_error",
    "best_epoch",
    "valid_error",
    "valid_loss",
    "is_averaged",
    "n_epochs",
    "network",
    "dataset",
    "seed",
    "seconds",
    "date",
    "parameters",
    "device",
    "versions",
    "version",
    "git_revision",
    "command_line",
    "flags",
]


def test_it_says_what_the_run_has_reached_and_where_that_comes_from(finished):
    content, rows = read(finished), read_results(finished)
    config = json.loads((finished / "config.json").read_text())
    best = min(rows, key=lambda row: (float(row["valid_error"]), float(row["valid_loss"])))
    assert list(content) == KEYS
    assert content["format"] == 1
    assert content["test_error"] == float(rows[-1]["test_error"])
    assert (content["best_epoch"], content["n_epochs"]) == (int(best["epoch"]), 2)
    assert (content["valid_error"], content["valid_loss"]) == (float(best["valid_error"]), float(best["valid_loss"]))
    assert content["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in rows), abs=1e-3)
    assert content["parameters"] == sum(parameter.numel() for parameter in densenet_bc(10, 2).parameters())
    assert (content["network"], content["dataset"], content["seed"]) == ("DenseNet-BC (L=10, k=2)", "digits", 3)
    assert (content["version"], content["git_revision"]) == (VERSION, git_revision())
    assert (content["device"], content["versions"]) == (config["device"], config["versions"])
    assert shlex.split(content["command_line"]) == sys.orig_argv
    assert content["flags"].items() <= config["flags"].items()
    assert {"save", "data", "resume"} & content["flags"].keys() == set()
    assert {"depth", "lr", "valid_size"} <= content["flags"].keys()


def test_its_date_is_that_of_the_checkpoint_in_utc_and_does_not_change_by_itself(copy):
    before = (copy / "results.json").read_text()
    os.utime(copy / "checkpoint.pt", (1_700_000_000, 1_700_000_000.75))
    assert run_here(f"--save={copy}", "--resume") == 0
    assert (copy / "results.json").read_text() == before
    (copy / "results.json").unlink()
    assert run_here(f"--save={copy}", "--resume") == 0
    assert read(copy)["date"] == "2023-11-14T22:13:20+00:00"
    assert datetime.fromisoformat(read(copy)["date"]).timestamp() == 1_700_000_000


def test_a_run_that_is_made_longer_has_none_until_its_new_end(copy, monkeypatch):
    from train.engine import Run

    def stopped(self, checkpoint):
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as context:
        context.setattr(Run, "finish", stopped)
        assert run_here(f"--save={copy}", "--resume", "--n_epochs=3") == 143
    assert not (copy / "results.json").exists()
    assert run_here(f"--save={copy}", "--resume", "--n_epochs=3") == 0
    content = read(copy)
    assert (content["n_epochs"], content["flags"]["n_epochs"]) == (3, 3)
    assert content["test_error"] == float(read_results(copy)[-1]["test_error"])
    assert content["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in read_results(copy)), abs=1e-3)


def test_without_validation_images_the_last_epoch_is_the_best(tmp_path):
    assert run_here(*SMALL, "--n_epochs=2", "--limit_batches=1", "--valid_size=0", f"--save={tmp_path / 'run'}") == 0
    content = read(tmp_path / "run")
    assert (content["best_epoch"], content["valid_error"], content["valid_loss"]) == (2, None, None)


def test_what_an_older_version_did_not_record_is_null(copy):
    config = json.loads((copy / "config.json").read_text())
    for key in ("command_line", "version"):
        del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    assert run_here(f"--save={copy}", "--resume") == 0
    assert (read(copy)["command_line"], read(copy)["version"]) == (None, None)


@pytest.mark.parametrize("theirs", [b"[0.5]", b'{"accuracy": 1}', b"text", b"[" * 100_000])
def test_a_file_of_somebody_else_is_not_replaced(theirs, copy, capsys):
    (copy / "results.json").write_bytes(theirs)
    assert run_here(f"--save={copy}", "--resume", "--n_epochs=3") == 2
    error = f"{copy / 'results.json'} was not written by this program, and would be replaced; give it another name"
    assert capsys.readouterr().err == f"demo.py: error: {error}\n"
    assert (copy / "results.json").read_bytes() == theirs


def test_the_command_line_is_quoted_and_names_no_password(monkeypatch):
    words = ["python", "demo.py", "--save", "my runs/a", "--data_url=https://me:secret@example.org/a,ftp://b@c/d@e"]
    monkeypatch.setattr(sys, "orig_argv", words)
    line = command_line()
    assert "secret" not in line
    assert shlex.split(line) == [*words[:-1], "--data_url=https://example.org/a,ftp://c/d@e"]


def test_the_command_line_of_several_processes_is_torchrun_s(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--save=run"])
    assert command_line() == "torchrun --nproc_per_node=2 demo.py --save=run"
