"""Start the application in several processes on this machine, by torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.application import ROOT

LAUNCH = [sys.executable, "-m", "torch.distributed.run"]


def start_processes(count: int, *words: str, folder: Path, program: Path = ROOT / "demo.py") -> subprocess.Popen:
    """Start a program, or the application with a command line, in some processes that work in `folder`."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(folder.parent)  # where the launcher leaves a folder of logs
    return subprocess.Popen(
        [*LAUNCH, "--standalone", f"--nproc_per_node={count}", str(program), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_processes(
    count: int, *words: str, folder: Path, program: Path = ROOT / "demo.py"
) -> subprocess.CompletedProcess:
    """Start a program, or the application with a command line, in some processes, and wait until they have ended."""
    process = start_processes(count, *words, folder=folder, program=program)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines_of_the_application(text: str) -> list[str]:
    """Return the lines on stderr that the application itself has written, without the launcher's report."""
    return [line for line in text.splitlines() if line.startswith(("demo.py", "SIG", "warning"))]
