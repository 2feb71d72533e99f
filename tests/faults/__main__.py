"""A run that meets one fault after the other, and must end in the bits of a run that met none.

python -m tests.faults --rounds 150

A round starts the run, or goes on with it, until a fault ends its process: SIGKILL at any moment or at a rename,
SIGTERM or SIGINT, once or twice, or a write that fails. Out of 25 rounds, 17 end by SIGKILL and 4 by one SIGTERM.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import matplotlib.image

from tests.faults.failing_system import ERRORS, KILLS
from tests.support.application import ROOT, assert_same_run, command
from train.run.checkpoint import Checkpoint, read_checkpoint
from train.run.config import CHECKPOINT, CONFIG, CURVES, FILES, MODEL, PREVIOUS, RESULTS, SUMMARY
from train.run.files import load_tensors
from train.run.history import to_csv

WORDS = ["--dataset=digits", "--depth=10", "--growth_rate=2", "--batch_size=128", "--seed=5", "--drop_rate=0.2"]
EPOCHS_A_ROUND = 3  # no round finishes more
LONGEST_WAIT = 1.5  # seconds from the first line to a signal; an epoch takes about half a second
LONGEST_GAP = 0.03  # seconds between two signals
PATIENCE = 300  # seconds after which a process hangs
SLOWEST_EPOCH = 3  # seconds, on a machine with other work on it
# The last place of a fault: bytes or calls of about two epochs.
LAST = {"full": 350_000, "quota": 350_000, "fsync": 20, "open": 10, **dict.fromkeys(KILLS, 12)}


class Violation(AssertionError):
    """Something that no fault may cause."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise Violation(message)


class Run:
    """A run, the process that it is in, and what is known of it.

    Args:
        folder: Where --save, stdout and stderr are.
        name: The name of the save directory.
        n_epochs: Epochs of the whole run.
    """

    def __init__(self, folder: Path, name: str, n_epochs: int):
        self.save = folder / name
        self.stdout, self.stderr = folder / f"{name}.stdout", folder / f"{name}.stderr"
        self.n_epochs = n_epochs
        self.first_line = command(*WORDS, f"--n_epochs={n_epochs}", f"--save={self.save}", "--resume=True")
        self.next_line = self.first_line
        self.epoch = 0  # the last one in the folder
        self.process: subprocess.Popen | None = None

    def start(self, fault: str | None = None) -> None:
        """Start the run or go on with it, with the command line that it printed last if it was asked to stop."""
        line, self.next_line = self.next_line, self.first_line
        if fault:
            line = [sys.executable, "-m", "tests.faults.failing_system", fault, *line[2:]]
        self.expects_warning = not (self.save / CHECKPOINT).exists() and (self.save / PREVIOUS).exists()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with self.stdout.open("w") as stdout, self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                line, cwd=ROOT, env={**os.environ, **settings}, stdout=stdout, stderr=stderr
            )

    def wait_at_random(self, draw: random.Random) -> None:
        """Wait for the first line, and then for some time or some epochs."""
        self._wait_until(lambda: "\n" in self.stdout.read_text())
        end = time.monotonic() + draw.uniform(0, LONGEST_WAIT)
        most = EPOCHS_A_ROUND - 1
        self._wait_until(lambda: time.monotonic() >= end or len(self.printed_epochs()) >= most)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        patience = time.monotonic() + PATIENCE
        while not condition():
            require(self.process.poll() is None, f"the process ended by itself: {self.process.returncode}")
            require(time.monotonic() < patience, "the process hangs")
            time.sleep(0.002)

    def end(self, *exit_codes: int, patience: float = PATIENCE) -> list[str]:
        """Wait for the end of the process, some seconds, and return the lines that it wrote to stderr."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise Violation("the process hangs") from None
        lines = [line for line in self.stderr.read_text().splitlines() if line]
        require(code in exit_codes, f"exit code {code}, not {' or '.join(map(str, exit_codes))}; stderr: {lines}")
        if self.expects_warning and lines and lines[0].startswith("warning: "):
            require(f"{CHECKPOINT} is missing; going on from {PREVIOUS}" in lines.pop(0), "another warning")
        require("Traceback" not in "".join(lines), f"a traceback: {lines}")
        return lines

    def printed_epochs(self) -> list[int]:
        """The epochs that the process printed a line of."""
        return [int(epoch) for epoch in re.findall(r"^epoch +(\d+)/", self.stdout.read_text(), re.MULTILINE)]

    def stop(self) -> None:
        """End the process if it still runs."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def check(self, *, is_tidy: bool) -> None:
        """All files are whole, no finished epoch is lost, and what was to go on has gone on."""
        before, epochs = self.epoch, self.printed_epochs()
        resumed = re.findall(r"^Resuming (after|in) epoch (\d+)[,.]", self.stdout.read_text(), re.MULTILINE)
        possible = [[], [("after", str(before))], [("in", str(before + 1))]]
        require(resumed in possible, f"the run stood at epoch {before}, but resumed {resumed}")
        last = before + len(epochs)
        require(epochs == [*range(before + 1, last + 1)], f"after epoch {before} came {epochs}")
        self.epoch = check_files(self.save)
        require(self.epoch - last in (0, 1), f"epoch {last} was finished, but the folder stands at {self.epoch}")
        leftovers = {path.name for path in self.save.glob("*")} - set(FILES)
        require(not (is_tidy and leftovers), f"left behind: {leftovers}")


def check_files(save: Path) -> int:
    """Require that each file of a run is whole or not there, and return the epoch at which the run stands."""
    readers = {
        CONFIG: lambda path: json.loads(path.read_text()),
        CHECKPOINT: read_checkpoint,
        PREVIOUS: read_checkpoint,
        RESULTS: Path.read_bytes,
        MODEL: load_tensors,
        CURVES: matplotlib.image.imread,
        SUMMARY: lambda path: json.loads(path.read_text()),
    }
    content = {}
    for name, read in readers.items():
        if (save / name).exists():
            try:
                content[name] = read(save / name)
            except Exception as error:
                raise Violation(f"{name} is not whole: {error!r}") from error
    checkpoint = content.get(CHECKPOINT) or content.get(PREVIOUS) or Checkpoint()
    # It is not there while model.pt is replaced.
    possible = [None, *(to_csv(rows).encode() for rows in (checkpoint.rows, checkpoint.rows[:-1]))]
    require(content.get(RESULTS) in possible, f"{RESULTS} is not that of epoch {checkpoint.epoch} or the one before")
    return checkpoint.epoch


def kill(run: Run, draw: random.Random) -> bool:
    """SIGKILL at any moment. Like all rounds it returns whether the process could tidy up."""
    run.start()
    run.wait_at_random(draw)
    run.process.kill()
    run.end(-signal.SIGKILL)
    return False


def kill_at_rename(run: Run, draw: random.Random) -> bool:
    """SIGKILL right before or after a rename."""
    _start_with_fault(run, draw, KILLS)
    run.end(-signal.SIGKILL)
    return False


def fail_to_write(run: Run, draw: random.Random) -> bool:
    """A disk that is full or broken, or a file that may not be written: one line, and exit code 1."""
    what = _start_with_fault(run, draw, list(ERRORS))
    lines = run.end(1)
    require(len(lines) == 1, f"not one line on stderr, but {lines}")
    reason = os.strerror(ERRORS[what])
    require(re.search(rf"error: .*{re.escape(str(run.save))}/[\w.]+: {reason}", lines[0]), f"unclear: {lines[0]}")
    return True


def _start_with_fault(run: Run, draw: random.Random, kinds: list[str] | tuple[str, ...]) -> str:
    what = draw.choice(kinds)
    run.start(f"{what}:{draw.randint(1, LAST[what])}")
    return what


def stop_by(number: signal.Signals) -> Callable[[Run, random.Random], bool]:
    """One signal that asks to stop: the last line says how to go on, and the next round does so."""

    def round_(run: Run, draw: random.Random) -> bool:
        run.start()
        run.wait_at_random(draw)
        run.process.send_signal(number)
        lines = run.end(128 + number)
        require(len(lines) in (1, 2), f"too many lines on stderr: {lines}")
        message, found, line = lines[-1].partition("; to go on: ")
        require(found and f"stopped by {number.name}" in message, f"no line that goes on: {lines}")
        run.next_line = shlex.split(line)
        return True

    return round_


def stop_twice(run: Run, draw: random.Random) -> bool:
    """Two signals right after each other; the second may come at any point of what the first one does."""
    run.start()
    run.wait_at_random(draw)
    for number in draw.choices((signal.SIGTERM, signal.SIGINT), k=2):
        run.process.send_signal(number)
        time.sleep(draw.uniform(0, LONGEST_GAP))
    numbers = (signal.SIGTERM, signal.SIGINT)
    run.end(*(128 + number for number in numbers), *(-number for number in numbers))  # equal to a shell
    return False


ROUNDS = {
    "SIGKILL": kill,
    "SIGTERM": stop_by(signal.SIGTERM),
    "failed write": fail_to_write,
    "SIGKILL at a rename": kill_at_rename,
    "two signals": stop_twice,
    "SIGINT": stop_by(signal.SIGINT),
}
DECK = [*ROUNDS, *["SIGKILL"] * 14, *["SIGTERM"] * 3, "failed write", "SIGKILL at a rename"]


def meet_faults(folder: Path, *, rounds: int, seed: int, report: Callable[[str], object] = print) -> Counter:
    """Take a run through faults, compare it with an undisturbed one, and return how many there were of each kind.

    Args:
        folder: Where both runs are left.
        rounds: Number of faults.
        seed: Decides their order and moments.
        report: Called with a line for each round.

    Raises:
        Violation: As soon as something is wrong.
    """
    draw = random.Random(seed)
    kinds = list(islice(cycle(DECK), rounds))
    draw.shuffle(kinds)
    undisturbed, disturbed = (Run(folder, name, EPOCHS_A_ROUND * rounds + 1) for name in ("undisturbed", "disturbed"))
    try:
        undisturbed.start()
        for number, kind in enumerate(kinds, start=1):
            is_tidy = ROUNDS[kind](disturbed, draw)
            disturbed.check(is_tidy=is_tidy)
            report(f"round {number}/{rounds}: {kind}, epoch {disturbed.epoch}")
        disturbed.start()
        for run in (disturbed, undisturbed):
            patience = PATIENCE + SLOWEST_EPOCH * run.n_epochs
            require(run.end(0, patience=patience) == [], "a finished run wrote to stderr")
            run.check(is_tidy=True)
    finally:
        undisturbed.stop()
        disturbed.stop()
    compare(disturbed.save, undisturbed.save)
    return Counter(kinds)


def compare(disturbed: Path, undisturbed: Path) -> None:
    """Require the same results, bits and file names."""
    try:
        assert_same_run(disturbed, undisturbed)
    except AssertionError as error:
        raise Violation("the results or the weights are not those of the undisturbed run") from error
    curves = [(save / CURVES).read_bytes() for save in (disturbed, undisturbed)]
    require(curves[0] == curves[1], f"{CURVES} is not that of the undisturbed run")
    names = [sorted(path.name for path in save.iterdir()) for save in (disturbed, undisturbed)]
    require(names == [sorted(FILES)] * 2, f"the files are {names}")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=positive, default=150, help="number of faults (default: 150, 15 to 30 minutes)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides their order and moments (default: 0)")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    start = time.monotonic()
    try:
        kinds = meet_faults(folder, rounds=arguments.rounds, seed=arguments.seed, report=say)
    except Violation as violation:
        print(f"violation: {violation}\nboth runs are left in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(", ".join(f"{number} x {kind}" for kind, number in kinds.most_common()))
    print(f"The run ended in the bits of the undisturbed one, after {time.monotonic() - start:.0f} s.")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
