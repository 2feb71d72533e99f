"""Where a result comes from: versions of packages and of this code."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSION = "1.0.0"  # of this program; CHANGELOG.md says what it changed
ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    import torch  # takes seconds, so that nothing that a refused command line needs imports it

    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn", "scipy")}
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **packages, **cuda, "system": f"{sys.platform} {platform.machine()}"}


def git_revision(folder: Path = ROOT) -> str | None:
    """The commit of the code in a folder, with "+changes" if files differ from it; None outside of git."""

    def git(*words: str) -> str:
        # Without the option, "status" takes a lock and writes the index anew.
        line = ["git", "--no-optional-locks", *words]
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None  # a copy of this code inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def version_line(name: str) -> str:
    """The version of this program with its commit, and the versions of torch and Python."""
    try:
        torch = f"torch {version('torch')}"  # without its import, which takes seconds
    except PackageNotFoundError:
        torch = "no torch"
    return (
        f"{name} {VERSION}: git revision {git_revision() or 'not known'}, {torch}, Python {platform.python_version()}"
    )
