"""What the README tells a user to type, and what it says of the flags."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from tests.application import ROOT, read_results
from train.command_line.flags import bind, choose
from train.command_line.recipes import PAPER

README = (ROOT / "README.md").read_text()
HEADINGS = {
    "train": "### Flags",
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
    for name in ("demo.py", "models", "data", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(train, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    error = float(read_results(tmp_path / "runs/digits")[-1]["test_error"])
    assert error <= 0.03
    last = f"Test error {error:.2%} (accuracy {1 - error:.2%}); everything is in runs/digits"
    assert result.stdout.splitlines()[-1] == last


def test_every_command_line_in_it_is_accepted():
    lines = [line for language in ("bash", "") for line in commands(language) if "demo.py" in line]
    assert len(lines) >= 19
    for line in lines:
        words = line.replace("<folder>", "folder").partition("demo.py")[2].split()
        name, words = choose(demo.COMMANDS, words, name="demo.py")
        given = bind(demo.COMMANDS[name], words, name="demo.py")
        assert name in ("benchmark", "compare") or "save" in given


def test_its_table_of_recipes_is_the_paper_s():
    rows = re.findall(r"^\| DenseNet.* \| ([0-9.]+) \| `--recipe ([^`]*)` \|$", README, re.MULTILINE)
    assert {recipe: float(error) for error, recipe in rows} == PAPER


def test_all_commands_have_a_section():
    assert HEADINGS.keys() == demo.COMMANDS.keys()


@pytest.mark.parametrize(("name", "heading"), HEADINGS.items())
def test_its_tables_of_flags_are_the_signatures(name, heading):
    text, function = section(heading), demo.COMMANDS[name]
    rows = re.findall(r"^\| `--(\w+)` \| (?:`([^`]*)`|(required)) \|", text, re.MULTILINE)
    documented = {flag: "required" if required else default for flag, default, required in rows}
    assert len(documented) == len(rows)
    actual = {
        flag: "required" if parameter.default is inspect.Parameter.empty else as_typed(parameter.default)
        for flag, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }
    assert documented == actual


def test_what_it_says_lies_in_the_folder_is_what_lies_there():
    from train.folder.run import FILES

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
