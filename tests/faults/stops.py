"""A run that is stopped in steps inside its epochs, and must end in the bits of a run that was not.

python -m tests.faults.stops --rounds 60

Each round goes on with the run in a process of its own, forked from this one, until a signal comes in a step drawn at
random: SIGTERM, SIGINT and SIGUSR1 in turn. Dropout, all kinds of augmentation, averaged weights, accumulation and a
scale of fp16 that overflows every few steps are on. At last, a run in two processes is stopped inside an epoch, and
goes on in two, one and three.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from tests.faults import stopping_program
from tests.support.application import ROOT, assert_same_run, read_results
from tests.support.torchrun import LAUNCH
from train.run.checkpoint import read_checkpoint
from train.run.config import CHECKPOINT

WORDS = ["--dataset=digits", "--depth=10", "--growth_rate=2", "--seed=5", "--drop_rate=0.2", "--augment=True"]
ALONE = [*WORDS, "--batch_size=64", "--accum_steps=2", "--precision=fp16", "--limit_batches=8"]
ALONE += ["--mixup=0.4", "--cutmix=1", "--trivial_augment=True", "--erasing=0.3", "--ema=0.9", "--clip_grad=5"]
TOGETHER = [*WORDS, "--batch_size=64", "--n_epochs=3", "--mixup=0.4", "--ema=0.9"]
STEPS = 8  # of an epoch in one process
MOST_STEPS = 12  # of a round
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PROGRAM = "tests.faults.stopping_program"
PATIENCE = 900  # seconds


class Violation(AssertionError):
    """Something that no stop may cause."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise Violation(message)


class Ended(NamedTuple):
    """The end of a process, and what it printed."""

    returncode: int | None
    stdout: str
    stderr: str


def go_on(save: Path, *words: str, stop: str = "SIGTERM:0") -> Ended:
    """Begin a run or go on with it until it ends or a signal comes, in a process that need not import torch."""
    paths = save.with_suffix(".stdout"), save.with_suffix(".stderr")
    process = get_context("fork").Process(target=_run, args=(stop, [*words, *_place(save)], paths))
    process.start()
    process.join(PATIENCE)
    process.kill()
    return Ended(process.exitcode, *(path.read_text() for path in paths))


def _run(stop: str, words: list[str], paths: tuple[Path, Path]) -> None:
    for descriptor, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    stopping_program.main(stop, words)


def go_on_together(count: int, save: Path, *words: str, stop: str = "SIGTERM:0") -> Ended:
    """The same in several processes, which torchrun starts."""
    done = subprocess.run(
        [*LAUNCH, "--standalone", f"--nproc_per_node={count}", "-m", PROGRAM, stop, *words, *_place(save)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def _place(save: Path) -> list[str]:
    return [f"--save={save}", "--resume=True"]


def stop_alone(folder: Path, *, rounds: int, seed: int) -> Counter:
    """Stop a run inside its epochs, and return how many stops by each signal there were.

    Raises:
        Violation: If it does not stop after the step in hand, goes on elsewhere, or ends in other bits.
    """
    draw = random.Random(seed)
    lengths = [draw.randint(1, MOST_STEPS) for _ in range(rounds)]
    words = [*ALONE, f"--n_epochs={sum(lengths) // STEPS + 1}"]
    undisturbed, stopped = folder / "undisturbed", folder / "stopped"
    require(go_on(undisturbed, *words).returncode == 0, "the undisturbed run fails")
    taken, counts = 0, Counter()
    for number, length in enumerate(lengths, start=1):
        name = SIGNALS[number % len(SIGNALS)]
        ended = go_on(stopped, *words, stop=f"{name.name}:{length}")
        _require_resumed(ended.stdout, taken)
        taken += length
        where = f"in epoch {1 + (taken - 1) // STEPS}, batch {1 + (taken - 1) % STEPS}"
        require(ended.returncode == 128 + name, f"exit code {ended.returncode}: {ended.stderr}")
        require(f"stopped by {name.name} {where}; {stopped} holds all" in ended.stderr, f"unclear: {ended.stderr}")
        counts[name.name] += 1
        print(f"round {number}/{rounds}: {name.name} {where}", flush=True)
    last = go_on(stopped, *words)
    _require_resumed(last.stdout, taken)
    require((last.returncode, last.stderr) == (0, ""), f"the last round: {last.stderr}")
    compare(stopped, undisturbed)
    skipped = sum(int(row["skipped_steps"]) for row in read_results(undisturbed))
    print(f"{taken} steps, of which {skipped} were skipped (overflow in fp16)")
    return counts


def _require_resumed(out: str, taken: int) -> None:
    position = "in epoch {}, after batch {}".format(*(1 + (taken - 1) // STEPS, 1 + (taken - 1) % STEPS))
    found = re.findall(r"^Resuming (.*)\.$", out, re.MULTILINE)
    require(found == ([position] if taken else []), f"after {taken} steps the run resumes {found}")


def stop_together(folder: Path) -> None:
    """Stop a run of two processes inside an epoch, and go on in two, one and three.

    Raises:
        Violation: If two do not end in the bits of an undisturbed run, or another number does not end.
    """
    undisturbed, stopped = folder / "undisturbed-2", folder / "stopped-2"
    require(go_on_together(2, undisturbed, *TOGETHER).returncode == 0, "the undisturbed run of two fails")
    ended = go_on_together(2, stopped, *TOGETHER, stop="SIGUSR1:27")
    found = re.search(r"stopped by SIGUSR1 (in epoch 2, batch \d+);", ended.stderr)
    require(found, f"not stopped inside epoch 2: {ended.stderr}")
    for count in (2, 1, 3):
        copy = shutil.copytree(stopped, folder / f"stopped-2-{count}")
        ended = go_on(copy) if count == 1 else go_on_together(count, copy)
        require(ended.returncode == 0, f"{count} processes do not go on: {ended.stderr}")
        require("Resuming in epoch 2, after" in ended.stdout, f"{count} processes go on elsewhere: {ended.stdout}")
        require(len(read_results(copy)) == 3, f"{count} processes end early")
        if count == 2:
            compare(copy, undisturbed)
        print(f"two processes, stopped {found[1]}: {count} went on, test error {read_results(copy)[-1]['test_error']}")


def compare(stopped: Path, undisturbed: Path) -> None:
    """Require the same results, chosen weights, last weights, averages, momentum and scale."""
    try:
        assert_same_run(stopped, undisturbed)
    except AssertionError as error:
        raise Violation("the results or the weights are not those of the undisturbed run") from error
    one, other = (read_checkpoint(save / CHECKPOINT) for save in (stopped, undisturbed))
    require(one.scaler == other.scaler, "the scale is not that of the undisturbed run")
    momentum = [[state["momentum_buffer"] for state in run.optimizer["state"].values()] for run in (one, other)]
    states = [(one.network.values(), other.network.values()), (one.ema.values(), other.ema.values()), momentum]
    for ours, expected in states:
        require(all(map(torch.equal, ours, expected)), "the last state is not that of the undisturbed run")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.stops", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="number of stops (default: 60, some ten minutes)")
    parser.add_argument("--seed", type=int, default=0, help="decides the steps (default: 0)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stops-"))
    start = time.monotonic()
    try:
        counts = stop_alone(folder, rounds=arguments.rounds, seed=arguments.seed)
        seconds = time.monotonic() - start
        stop_together(folder)
    except Violation as violation:
        print(f"violation: {violation}\nthe runs are left in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(", ".join(f"{number} x {name}" for name, number in counts.items()))
    print(f"The run ended in the bits of the undisturbed one, after {seconds:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
