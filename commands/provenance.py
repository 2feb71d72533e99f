"""Where a result comes from: versions of packages, the commit of this code, and the command line."""

import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from train.processes import is_launched, starting_words

VERSION = "1.2.0"  # of this program; CHANGELOG.md says what it changed
ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Return the versions of everything that results can depend on, by name."""
    import torch  # takes seconds to import, and command lines that are refused do not need it

    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn", "scipy")}
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **packages, **cuda, "system": f"{sys.platform} {platform.machine()}"}


def git_revision(folder: Path = ROOT) -> str | None:
    """Return the commit of the code in a folder, with "+changes" if files differ from it.

    None if the folder is not the root of a git repository, or git is missing.
    """

    def git(*words: str) -> str:
        # Without the option, "git status" takes a lock and updates the index.
        line = ["git", "--no-optional-locks", *words]
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None  # a copy of this code inside another repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """Return the words that started this program, quoted for a shell. User names and passwords in URLs are left out."""
    words = [*starting_words(), *sys.argv[1:]] if is_launched() else sys.orig_argv
    return shlex.join(re.sub(r"(?<=://)[^/@\s]*@", "", word) for word in words)


def version_line(name: str) -> str:
    """Return a line for --version: the version and the commit of the program, and the versions of torch and Python."""
    try:
        torch = f"torch {version('torch')}"  # without importing it, which takes seconds
    except PackageNotFoundError:
        torch = "no torch"
    return (
        f"{name} {VERSION}: git revision {git_revision() or 'not known'}, {torch}, Python {platform.python_version()}"
    )
