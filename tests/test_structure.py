"""Imports run one way, and importing does nothing."""

import ast
import subprocess
import sys

import pytest

from tests.support.application import ROOT

PACKAGES = ("commands", "models", "data", "train")


def imported(package):
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_neither_each_other_nor_the_entry(package):
    assert imported(package) & ({*PACKAGES, "demo", "tests"} - {package}) == set()


def test_models_imports_torch_and_nothing_else_from_outside():
    assert imported("models") - set(sys.stdlib_module_names) == {"torch"}


def test_importing_prints_nothing_and_asks_for_no_gpu():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    ]
    program = "\n".join(
        [f"import {module}" for module in ["demo", *modules]] + ["import torch; assert not torch.cuda.is_initialized()"]
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
