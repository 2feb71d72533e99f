"""The package densenets, as pip installs it: built, unpacked and used."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
import torch

from commands.provenance import VERSION
from tests.support.application import ROOT
from tests.test_structure import MODULES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = """
import sys
from importlib.util import find_spec
import densenets
assert "torch" not in sys.modules
assert not any(map(find_spec, ("demo", "commands", "models", "data", "train")))
from densenets import *
import torch
network = densenet_bc(depth=10, growth_rate=2)
assert type(network) is DenseNet and network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
assert {"densenet121", "load_weights"} <= {*dir(densenets)} and not hasattr(densenets, "nothing")
"""
HINTS = """
import os
import sys
import densenets
sys.path.insert(0, densenets.__path__[-1])
from train.processes import starting_words
assert starting_words() == ["densenets"]
os.environ |= {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}
assert starting_words() == ["torchrun", "--nproc_per_node=2", "-m", "densenets"]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    build = pytest.importorskip("hatchling.build")
    folder, before = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def installed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


def run(folder, *words, environment):
    """Run Python in a folder, with packages from elsewhere."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_it_requires_what_the_file_of_requirements_names():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert PROJECT["dependencies"] == [line.partition("#")[0].strip() for line in lines]


def test_the_wheel_holds_the_program_below_one_name_and_nothing_else(wheel):
    dist_info = f"densenets-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = BytesParser().parsebytes(archive.read(f"{dist_info}/METADATA"))
        entry_points = archive.read(f"{dist_info}/entry_points.txt").decode()
    code = {name for name in names if not name.startswith(dist_info)}
    assert code == {f"densenets/{name}" for name in (*MODULES, "__init__.py", "__main__.py")}
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("densenets", VERSION, "MIT")
    assert f"{dist_info}/licenses/LICENSE" in names
    assert entry_points.split() == ["[console_scripts]", "densenets", "=", "densenets.__main__:main"]


def test_the_command_names_itself_and_ignores_packages_where_it_stands(installed, tmp_path):
    for name in ("models", "data", "train", "commands"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not mine')")
    result = run(tmp_path, "-m", "densenets", "--dept", "10", environment={"PYTHONPATH": str(installed)})
    message = "densenets: error: unknown flag '--dept'; did you mean --depth?\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    help = run(tmp_path, "-m", "densenets", "check", "--help", environment={"PYTHONPATH": str(installed)})
    assert re.search(r"^ +densenets check \[--flag value \.\.\.\]$", help.stdout, re.MULTILINE)
    assert "demo.py" not in help.stdout


@pytest.mark.parametrize("program", [LIBRARY, HINTS], ids=["library", "hints"])
def test_it_works_as_a_library_and_names_the_command_that_continues_a_run(program, installed, tmp_path):
    result = run(tmp_path, "-c", program, environment={"PYTHONPATH": str(installed)})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_checkout_has_that_name_too():
    import densenets

    assert densenets.densenet_bc(depth=10, growth_rate=2)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
