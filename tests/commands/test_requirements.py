"""Optional packages, and a C++ compiler."""

import sys

import pytest

from commands.requirements import require_compiler, require_packages
from train.errors import UserError


def test_installed_packages_pass():
    require_packages("numpy", "torch", flag="format", value="new")
    require_packages(flag="format", value="new")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["numpy"], "--format is new, but the package numpy is missing: pip install numpy"),
        (["numpy", "PIL"], "--format is new, but the packages numpy, PIL are missing: pip install numpy PIL"),
    ],
)
def test_missing_packages_are_named(missing, message, monkeypatch):
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as refusal:
        require_packages("numpy", "torch", "PIL", flag="format", value="new")
    assert str(refusal.value) == message


def test_a_compiler_is_found_on_the_path_or_named_by_cxx(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"^--compile is True, but needs a C\+\+ compiler: "):
        require_compiler()
    mine = tmp_path / "mine"
    mine.write_text("")
    mine.chmod(0o755)
    monkeypatch.setenv("CXX", "mine")
    require_compiler()
    monkeypatch.setenv("CXX", "")
    mine.rename(tmp_path / "clang++")
    require_compiler()
