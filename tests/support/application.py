"""Running the application as a user does, and reading what it leaves behind."""

import csv
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import demo

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset=digits", "--depth=10", "--growth_rate=2", "--batch_size=128", "--seed=3"]
EPOCHS = 4
LONGER = [*SMALL, f"--n_epochs={EPOCHS}", "--drop_rate=0.2", "--augment"]
TIMING = ("seconds", "images_per_second", "peak_memory_mb")


def run_here(*words: str) -> int:
    """Run a command line in this process and return its exit code."""
    try:
        demo.main([*words])
    except SystemExit as stop:
        return stop.code
    return 0


def command(*words: str) -> list[str]:
    """The words that start the application in a process of its own."""
    return [sys.executable, str(ROOT / "demo.py"), *words]


def run_apart(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command line in a process of its own that stands in `folder`."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command(*words), cwd=folder, env=environment, capture_output=True, text=True)


def read_results(folder: Path, *, timing: bool = True) -> list[dict[str, str]]:
    """The rows of results.csv as text, on request without the columns that differ from run to run."""
    rows = read_csv(folder / "results.csv")
    return rows if timing else [{name: row[name] for name in row if name not in TIMING} for row in rows]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a table, as text by the names of the columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    """Both folders hold the same results and the same weights, to the last bit."""
    assert read_results(one, timing=False) == read_results(other, timing=False)
    assert (one / "model.pt").read_bytes() == (other / "model.pt").read_bytes()


def assert_refused(*words: str, message: str, folder: Path, capture, code: int = 2) -> None:
    """A command ends in one line that has the message, prints nothing else, and leaves the folder as it was."""
    before = everything_in(folder)
    assert run_here(*words) == code
    out, error = capture.readouterr()
    assert out == ""
    assert re.fullmatch(rf"demo\.py {words[0]}: error: [^\n]+\n", error)
    assert message in error
    assert everything_in(folder) == before


def everything_in(folder: Path) -> dict[str, object]:
    """The contents of a folder and all below it by path: bytes of small files, size and time of change of large ones,
    targets of links.
    """
    return {str(path.relative_to(folder)): _look_at(path) for path in sorted(folder.rglob("*"))}


def _look_at(path: Path) -> object:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return stat.S_IFMT(status.st_mode)
    return path.read_bytes() if status.st_size < 10**8 else (status.st_size, status.st_mtime_ns)
