"""Several processes of the application on this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.application import ROOT

LAUNCH = [sys.executable, "-m", "torch.distributed.run"]


def start_team(count: int, *words: str, folder: Path, program: Path = ROOT / "demo.py") -> subprocess.Popen:
    """Start a program, or the application with a command line, in some processes that stand in `folder`."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(folder.parent)  # the launcher leaves a folder of logs behind
    return subprocess.Popen(
        [*LAUNCH, "--standalone", f"--nproc_per_node={count}", str(program), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_team(count: int, *words: str, folder: Path, program: Path = ROOT / "demo.py") -> subprocess.CompletedProcess:
    """Likewise, and wait for the end."""
    process = start_team(count, *words, folder=folder, program=program)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines_of_the_application(text: str) -> list[str]:
    """What the application itself has written to stderr, without the launcher's report."""
    return [line for line in text.splitlines() if line.startswith(("demo.py", "SIG", "warning"))]
