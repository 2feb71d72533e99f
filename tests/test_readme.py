"""Commands, links and facts in README.md and the pages in docs/."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import demo
from commands.line.bind import choose
from commands.program import read_settings
from commands.provenance import VERSION
from commands.recipes import PAPER
from commands.train.checks import check_training
from models import STRATEGIES, densenet_bc
from tests.support.application import ROOT, read_results, run_here
from tests.support.synthetic_datasets import make_cifar10
from tests.support.synthetic_images import encoded, make_folder, picture, write

README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {
    "train": "## Train on CIFAR or SVHN",
    "check": "### Your own images",
    "evaluate": "### Evaluate",
    "predict": "### Predict",
    "compare": "### Compare",
    "export": "### Export",
    "benchmark": "### Benchmark",
}
OTHER_PROGRAMS_FLAGS = {
    "nproc_per_node",
    "nnodes",
    "rdzv_backend",
    "rdzv_endpoint",
    "signals",
    "logdir",
    "spec",
    "from",
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def section(heading):
    """The text of the README under a heading, up to the next one."""
    return re.split(r"\n##", README.read_text().partition(f"\n{heading}\n")[2])[0]


def fenced(language, *pages):
    """The lines of all blocks of code in a language; an empty one is that of command lines to be filled in."""
    blocks = [block for page in pages for block in FENCED.findall(page.read_text())]
    return [line for name, block in blocks if name == language for line in block.splitlines()]


def test_the_first_command_trains_as_it_stands(tmp_path):
    install, train = fenced("bash", README)[:2]
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


FENCED_LINES = fenced("bash", *PAGES) + fenced("", *PAGES)
LINES = list(dict.fromkeys(line for line in FENCED_LINES if " demo.py" in line))  # each once
IN_TEXT = sorted({line for page in PAGES for line in re.findall(r"`(python demo\.py .*?)`", page.read_text())})
# Appended to a line that does not say otherwise.
SMALL = {"depth": 10, "growth_rate": 2, "n_epochs": 1, "limit_batches": 1, "batch_size": 16, "valid_size": 6}


def words_of(line):
    return line.partition(" demo.py")[2].split()


def command_of(line):
    return choose(demo.COMMANDS, words_of(line), name="demo.py")[0]


def settings_of(line):
    name, words = choose(demo.COMMANDS, words_of(line.replace("<folder>", "folder")), name="demo.py")
    return read_settings(demo.COMMANDS[name], words, name="demo.py", commands=demo.COMMANDS)


def test_the_command_lines_are_found():
    assert len(LINES) >= 27
    assert len(IN_TEXT) >= 5
    assert {command_of(line) for line in LINES} == demo.COMMANDS.keys()


def only_prints(line):
    return words_of(line)[-1] in ("--help", "--version")


@pytest.mark.parametrize("line", LINES + IN_TEXT)
def test_each_command_line_is_accepted(line):
    with pytest.raises(SystemExit, match=r"^0$") if only_prints(line) else nullcontext():
        settings_of(line)


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) == "train"])
def test_the_flags_of_each_training_line_go_together(line, monkeypatch):
    for installed in ("require_compiler", "require_packages"):  # of the machine, not of the line
        monkeypatch.setattr(f"commands.train.checks.{installed}", lambda *_, **__: None)
    processes = math.prod(map(int, re.findall(r"--n\w+=(\d+)", line.partition(" demo.py")[0])))
    settings = settings_of(line).checked()
    check_training(settings, num_processes=processes, is_launched=line.startswith("torchrun"))


def runs_here(line):
    """Whether it trains without a GPU, in one process, from no file to download, and without a compiler's minutes."""
    is_ours = command_of(line) == "train" and not line.startswith("torchrun") and line not in fenced("bash", *PAGES)
    return is_ours and not any(word in line for word in ("--compile", "densenet121", "--cuda_graph True"))


@pytest.mark.parametrize("line", [line for line in LINES if runs_here(line)])
def test_training_lines_train(line, tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--dataset folder" in line:
        make_folder(tmp_path / "data", {"train": 10, "test": 6})
    else:
        make_cifar10(tmp_path / "data", 100, 50, monkeypatch=monkeypatch)
    words = words_of(line.replace("--data <folder>", "--data data").replace("--save <folder>", "--save run"))
    settings = settings_of(line)
    small = SMALL | {"n_epochs": settings.warmup_epochs + 1}
    if settings.init_weights:  # a file as efficient_densenet_pytorch left it in 2017
        weights = densenet_bc(settings.depth, SMALL["growth_rate"]).state_dict()
        torch.save(weights, settings.init_weights, _use_new_zipfile_serialization=False)
    more = {flag: value for flag, value in small.items() if f"--{flag}" not in words}
    assert run_here(*words, *(f"--{flag}={value}" for flag, value in more.items())) == 0
    runs = [path.parent for path in (tmp_path / "run").rglob("results.csv")]  # several with --seeds
    assert runs
    assert all(read_results(run)[-1]["test_error"] != "" for run in runs)


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) not in ("train", "check", "benchmark")])
def test_lines_about_runs_work_as_they_stand(line, here, monkeypatch):
    shutil.copytree(here / "run", here / "other")
    if "--weights" in line:
        shutil.copy(here / "run/model.pt", here / "weights.pth")
        make_cifar10(here / "data", 10, 10, monkeypatch=monkeypatch)
        line = line.replace("--data <folder>", "--data data")
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


def test_the_grid_of_recipes_is_the_paper_s():
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table_of("## Reproduce the paper")]
    (_, _, *columns), _, *networks = rows
    grid = {
        f"{network}-{column}": float(error)
        for network, _, *errors in networks
        for column, error in zip(columns, errors, strict=True)
        if error != "-"
    }
    assert (len(networks), len(columns)) == (6, 5)
    assert grid == PAPER


def table_of(heading):
    return [line for line in section(heading).splitlines() if line.startswith("|")]


def first_cells(heading):
    """Texts marked as code in the first column of a table."""
    return [name for line in table_of(heading) for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_each_command_has_a_section_with_a_line_of_it():
    assert SECTIONS.keys() == demo.COMMANDS.keys()
    for name, heading in SECTIONS.items():
        lines = [line for line in section(heading).splitlines() if line in LINES]
        assert name in map(command_of, lines), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page):
    flags = {name for command in demo.COMMANDS.values() for name in command.settings.flags()}
    named = set(re.findall(r"--(?:no-)?([a-z]\w*)", page.read_text()))
    assert named <= flags | OTHER_PROGRAMS_FLAGS | {"help", "version"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_runs_exists(page):
    for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(module), module


def test_the_table_of_strategies_has_them_all():
    names = {name.strip('"') for name in first_cells("### Strategies")}
    assert names == {"efficient", "True", "False", *STRATEGIES}


def test_what_it_says_lies_in_the_folder_is_what_lies_there():
    from train.run.config import FILES

    assert set(first_cells("### What a run leaves in `--save`")) == set(FILES)


def titles(page):
    """The headings of a page, with their level."""
    return re.findall(r"^(#+) (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)


def anchor_of(title):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = [target for target in links(FENCED.sub("", page.read_text())) if not target.startswith("https://")]
    assert targets or page == CHANGELOG
    for target in targets:
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in [anchor_of(title) for _, title in titles(file)], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_contents_list_names_every_section(page):
    start = section("## Contents") if page == README else page.read_text().partition("\n## ")[0]
    listed = [target.removeprefix("#") for target in links(start) if target.startswith("#")]
    sections = [anchor_of(title) for level, title in titles(page) if level == "##"]
    assert [target for target in listed if target in sections] == [name for name in sections if name != "contents"]


PROGRAMS = [page for page in PAGES if fenced("python", page)]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.name)
def test_python_examples_run_and_give_the_shapes_in_their_comments(page):
    lines = fenced("python", page)
    shapes = [re.fullmatch(r"(\w+) = .*  # .*?(\(\d+(?:, \d+)+\))", line) for line in lines]
    claims = [f"assert {name}.shape == {shape}, {name}.shape" for name, shape in (m.groups() for m in shapes if m)]
    assert any("from models import" in line for line in lines)
    assert claims
    subprocess.run([sys.executable, "-c", "\n".join(lines + claims)], cwd=ROOT, check=True)


def test_changelog_and_citation_have_the_version_of_the_program():
    changelog, citation = CHANGELOG.read_text(), (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == VERSION
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [VERSION]
