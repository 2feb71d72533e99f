"""What the README tells a user to type, and what it says of the flags."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from commands.line.bind import choose
from commands.program import read_settings
from commands.recipes import PAPER
from commands.train.checks import check_training
from tests.support.application import ROOT, read_results, run_here
from tests.support.synthetic_datasets import make_cifar10
from tests.support.synthetic_images import encoded, make_folder, picture, write

README = (ROOT / "README.md").read_text()
HEADINGS = {
    "train": "### Flags",
    "check": "### Check your images",
    "evaluate": "### Evaluate",
    "predict": "### Predict",
    "compare": "### Compare",
    "export": "### Export",
    "benchmark": "## Benchmark",
}


def section(heading):
    """What stands under a heading, up to the next one."""
    return re.split(r"\n##", README.partition(f"\n{heading}\n")[2])[0]


def commands(language):
    blocks = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    return [line for name, block in blocks if name == language for line in block.splitlines()]


def as_typed(default):
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def test_the_first_command_trains_as_it_stands(tmp_path):
    install, train = commands("bash")[:2]
    assert install == "pip install -r requirements.txt"
    for name in ("demo.py", "commands", "models", "data", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(train, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    error = float(read_results(tmp_path / "runs/digits")[-1]["test_error"])
    assert error <= 0.03
    last = f"Test error {error:.2%} (accuracy {1 - error:.2%}); everything is in runs/digits"
    assert result.stdout.splitlines()[-1] == last


LINES = [line for language in ("bash", "") for line in commands(language) if " demo.py" in line]
# Appended where a line does not say otherwise.
SMALL = {"depth": 10, "growth_rate": 2, "n_epochs": 1, "limit_batches": 1, "batch_size": 16, "valid_size": 6}


def words_of(line):
    return line.partition(" demo.py")[2].split()


def command_of(line):
    return choose(demo.COMMANDS, words_of(line), name="demo.py")[0]


def settings_of(line):
    name, words = choose(demo.COMMANDS, words_of(line.replace("<folder>", "folder")), name="demo.py")
    return read_settings(demo.COMMANDS[name], words, name="demo.py", commands=demo.COMMANDS)


def test_every_command_line_in_it_is_accepted():
    assert len(LINES) >= 27
    for line in LINES:
        assert command_of(line) in ("benchmark", "check", "compare") or settings_of(line).save


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) == "train"])
def test_the_flags_of_each_training_line_go_together(line, monkeypatch):
    for installed in ("require_compiler", "require_packages"):  # of the machine, not of the line
        monkeypatch.setattr(f"commands.train.checks.{installed}", lambda *_, **__: None)
    processes = math.prod(map(int, re.findall(r"--n\w+=(\d+)", line.partition(" demo.py")[0])))
    settings = settings_of(line).checked()
    check_training(settings, num_processes=processes, is_launched=line.startswith("torchrun"))


def runs_here(line):
    """Whether it trains, in one process, from no file that must be downloaded, and without a compiler's minutes."""
    is_ours = command_of(line) == "train" and not line.startswith("torchrun") and line not in commands("bash")
    return is_ours and "--compile" not in line and "--init_weights" not in line


@pytest.mark.parametrize("line", [line for line in LINES if runs_here(line)])
def test_training_lines_train(line, tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--dataset folder" in line:
        make_folder(tmp_path / "data", {"train": 10, "test": 6})
    else:
        make_cifar10(tmp_path / "data", 100, 50, monkeypatch=monkeypatch)
    words = words_of(line.replace("--data <folder>", "--data data").replace("--save <folder>", "--save run"))
    n_epochs = settings_of(line).warmup_epochs + 1
    more = {flag: value for flag, value in (SMALL | {"n_epochs": n_epochs}).items() if f"--{flag}" not in words}
    assert run_here(*words, *(f"--{flag}={value}" for flag, value in more.items())) == 0
    assert read_results(tmp_path / "run")[-1]["test_error"] != ""


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) not in ("train", "check", "benchmark")])
def test_lines_about_runs_work_as_they_stand(line, here):
    shutil.copytree(here / "run", here / "other")
    write(here / "picture.jpg", encoded(picture(60, 50), "JPEG"))
    write(here / "more_pictures/a.png", encoded(picture(32, 32), "PNG"))
    assert run_here(*words_of(line.replace("<folder>", "run", 1).replace("<folder>", "other"))) == 0


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) == "check"])
def test_lines_about_data_work_as_they_stand(line, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    if "--dataset folder" in line:
        make_folder(tmp_path / "data", {"train": 2, "test": 2})
    else:
        make_cifar10(tmp_path / "data", 100, 50, monkeypatch=monkeypatch)
    assert run_here(*words_of(line.replace("<folder>", "data"))) == 0


def test_its_table_of_recipes_is_the_paper_s():
    rows = re.findall(r"^\| DenseNet.* \| ([0-9.]+) \| `--recipe ([^`]*)` \|$", README, re.MULTILINE)
    assert {recipe: float(error) for error, recipe in rows} == PAPER


def test_all_commands_have_a_section():
    assert HEADINGS.keys() == demo.COMMANDS.keys()


@pytest.mark.parametrize(("name", "heading"), HEADINGS.items())
def test_its_tables_of_flags_are_the_settings(name, heading):
    text, flags = section(heading), demo.COMMANDS[name].settings.flags().values()
    rows = re.findall(r"^\| `--(\w+)` \| (?:`([^`]*)`|(required)) \|", text, re.MULTILINE)
    documented = {flag: "required" if required else default for flag, default, required in rows}
    assert len(documented) == len(rows)
    actual = {
        flag.name: "required" if flag.is_required else as_typed(flag.default) for flag in flags if not flag.takes_words
    }
    assert documented == actual


def test_what_it_says_lies_in_the_folder_is_what_lies_there():
    from train.run.config import FILES

    table = README.partition("### What a run leaves")[2].partition("\n###")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == set(FILES)


def test_its_links_lead_somewhere():
    headings = {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in titles()}
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).exists()


def titles():
    return re.findall(r"^#+ (.*)$", README, re.MULTILINE)


def test_its_python_example_runs():
    program = "\n".join(commands("python"))
    assert "from models import" in program
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
