"""Imports run one way, between packages, folders and files, and importing does nothing."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import PurePosixPath

import pytest

from tests.support.application import ROOT

# Packages from the top down; those of one line do not import each other.
LEVELS = [("demo",), ("commands",), ("models", "data", "train")]
PACKAGES = ("commands", "models", "data", "train")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "demo.py", *FILES]}
KERNELS = sorted((ROOT / "models/buffer/kernels").glob("*.py"))  # some need triton, and are imported on GPUs only
FOLDERS = sorted({path.parent.relative_to(ROOT).as_posix() for path in FILES})


def imported_names(path, *, at=None):
    """Dotted names of all modules and members that a file imports, wherever in the file."""
    folder = PurePosixPath(at or path.relative_to(ROOT).as_posix()).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*folder[: len(folder) - node.level + 1]] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def file_of(name):
    """The file of a dotted name in this program; None for members and for packages from elsewhere."""
    path = name.replace(".", "/")
    return next((found for found in (f"{path}.py", f"{path}/__init__.py") if found in MODULES), None)


# Pairs of files, the first of which imports the second.
ARROWS = {
    (name, target)
    for name, path in MODULES.items()
    for target in map(file_of, imported_names(path))
    if target not in (None, name) and not target.endswith("/__init__.py")
}


def arrows_in(folder, arrows=ARROWS):
    """Pairs of files and folders directly in a folder, the first of which imports the second."""
    pairs = set()
    for ends in arrows:
        if all(end.startswith(f"{folder}/") for end in ends):
            first, second = (end.removeprefix(f"{folder}/").partition("/")[0] for end in ends)
            pairs |= {(first, second)} if first != second else set()
    return pairs


def find_circle(pairs):
    """A circle of arrows, None if they all run one way."""
    sorter = TopologicalSorter()
    for first, second in pairs:
        sorter.add(first, second)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_folders_in_a_folder_import_each_other_one_way(folder):
    assert find_circle(arrows_in(folder)) is None


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if arrows_in(folder)])
def test_an_import_that_is_turned_round_is_found(folder):
    for name, target in sorted(ARROWS):
        if arrows_in(folder, {(name, target)}):
            assert find_circle(arrows_in(folder, ARROWS | {(target, name)})) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package):
    level = next(i for i, names in enumerate(LEVELS) if package in names)
    allowed = {package, *(name for names in LEVELS[level + 1 :] for name in names)}
    ours = {name for names in LEVELS for name in names} | {"tests"}
    for path in (ROOT / package).rglob("*.py"):
        assert {name.partition(".")[0] for name in imported_names(path)} & ours <= allowed, path


def test_commands_do_not_import_each_other():
    commands = {path.name for path in (ROOT / "commands").iterdir() if (path / "command.py").exists()}
    assert len(commands) >= 5
    between = {(first, second) for first, second in arrows_in("commands") if {first, second} <= commands}
    assert between == set()


def test_models_imports_torch_and_nothing_else_from_outside():
    for path in (ROOT / "models").rglob("*.py"):
        names = {name.partition(".")[0] for name in imported_names(path)}
        assert names - set(sys.stdlib_module_names) <= {"models", "torch"} | ({"triton"} if path in KERNELS else set())


def test_importing_prints_nothing_and_asks_for_no_gpu():
    files = FILES if find_spec("triton") else [path for path in FILES if path not in KERNELS]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    program = "\n".join(
        [f"import {module}" for module in ["demo", *modules]] + ["import torch; assert not torch.cuda.is_initialized()"]
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
