"""--config: the flags of another run."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import demo
from commands.line.flags import Role
from commands.program import read_settings
from commands.settings import TrainSettings
from tests.support.application import ROOT, assert_refused, assert_same_run, run_here

OLD_RUN = ROOT / "tests/old_runs/plain/config.json"
OWN = {"seeds", "checkpoint_minutes", "save", "data", "data_url", "download", "tensorboard", "resume", "debug"}


def settings_of(*words):
    return read_settings(demo.COMMANDS["train"], [*words], name="demo.py", commands=demo.COMMANDS)


def write(path, **flags):
    path.write_text(json.dumps({"flags": flags}))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.json"


def test_a_run_with_the_flags_of_another_is_the_same_run(finished, tmp_path):
    assert run_here(f"--config={finished / 'config.json'}", f"--save={tmp_path / 'run'}") == 0
    assert_same_run(finished, tmp_path / "run")
    recorded, copied = (json.loads((run / "config.json").read_text())["flags"] for run in (finished, tmp_path / "run"))
    assert "config" not in copied
    assert copied == recorded | {"save": str(tmp_path / "run")}


def test_all_flags_are_taken_but_those_about_places_and_display(file):
    flags = {
        "save": "/theirs", "data": "/theirs", "data_url": "https://theirs", "download": False, "tensorboard": True,
        "resume": True, "debug": True, "dataset": "svhn", "depth": 22, "lr": 0.025, "efficient": "naive", "seed": 7,
        "valid_size": 40, "augment": True, "threads": 2, "init_weights": "/weights.pt",
    }  # fmt: skip
    settings = settings_of(f"--config={write(file, **flags)}", "--save=mine")
    expected = {name: value for name, value in flags.items() if name not in OWN} | {"init_weights": Path("/weights.pt")}
    assert settings == replace(TrainSettings(save=settings.save), **expected)


def test_the_help_names_the_flags_that_are_not_taken():
    assert TrainSettings.names(Role.FREE) & TrainSettings.names(Role.NOT_COMPARED) - {"config"} == OWN
    help = TrainSettings.flags()["config"].help
    assert set(re.split(r", | and ", help.partition("Not taken are ")[2].rstrip("."))) == OWN


def test_flags_on_the_line_take_precedence_and_so_do_those_that_they_stand_for(file):
    write(file, depth=22, growth_rate=6, lr=0.025, seed=7, batch_size=8)
    words = [f"--config={file}", "--save=mine"]
    settings = settings_of(*words, "--lr=0.5", "--seed=None")
    assert (settings.lr, settings.seed, settings.depth, settings.batch_size) == (0.5, None, 22, 8)
    settings = settings_of(*words, "--network=densenet121")
    assert (settings.depth, settings.growth_rate, settings.lr) == (121, 32, 0.025)
    settings = settings_of(*words, "--recipe=densenet-bc-100-12-c10+", "--batch_size=32")
    assert (settings.depth, settings.lr, settings.batch_size, settings.seed) == (100, 0.1, 32, 7)


def test_flags_in_the_file_may_stand_for_others(file):
    words = ["--save=mine", f"--config={file}"]
    write(file, recipe="densenet-bc-100-12-c10+", lr=0.2)
    settings = settings_of(*words)
    assert (settings.depth, settings.lr) == (100, 0.2)
    write(file, network="densenet121")
    assert settings_of(*words).growth_rate == 32


def test_flags_that_an_older_version_did_not_have_keep_their_defaults():
    recorded = json.loads(OLD_RUN.read_text())["flags"]
    settings = settings_of(f"--config={OLD_RUN}", "--save=mine")
    assert "deterministic" not in recorded
    assert settings.deterministic
    assert (settings.seed, settings.depth, settings.dataset) == tuple(map(recorded.get, ("seed", "depth", "dataset")))


def test_a_line_with_it_resumes_the_run_that_it_began(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    words = [f"--config={finished / 'config.json'}", f"--save={run}", "--resume"]
    assert run_here(*words) == 0
    assert_same_run(finished, run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "cannot be read: Expecting value"),
        ("[1]", "cannot be read: it should hold the flags of the run"),
        ('{"flags": {"dept": 10}}', "cannot be used: unknown flag 'dept'; did you mean --depth?"),
        ('{"flags": {"depth": "deep"}}', "cannot be used: --depth is 'deep', but must be a whole number"),
        ('{"flags": {"depth": [10]}}', "its flag 'depth' should be text, a number, true, false or null"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text, message, file, tmp_path, capsys):
    if text is not None:
        file.write_text(text)
    words = [f"--config={file}", f"--save={tmp_path / 'run'}"]
    assert_refused("train", *words, message=message, folder=tmp_path, capture=capsys)


def test_a_folder_in_its_place_is_named(tmp_path, capsys):
    words = [f"--config={tmp_path}", f"--save={tmp_path / 'run'}"]
    assert_refused("train", *words, message="cannot be read: it is not a file", folder=tmp_path, capture=capsys)
