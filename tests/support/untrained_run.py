"""A run that trains nothing, but does to its folder everything that a run does, and lets a test interfere at each step.

Weights are a function of seed and epoch, so that a file says which run has written it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from commands.train.tensorboard import Events
from tests.support.synthetic_runs import make_rows
from train.run import files
from train.run.acquire import acquire
from train.run.checkpoint import Checkpoint
from train.run.config import CURVES, SUMMARY
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder

EPOCHS = 2
CONFIG = {"parameters": 1, "classes": ["a", "b"], "images": {"train": 1, "valid": 1}}
# The moments of a run at which something may happen to its folder, in their order, and the epoch they are tried in.
MOMENTS = {
    "before load": 0,
    "before config": 0,
    "in training": 2,
    "before the checkpoint": 2,
    "between temporary and check": 2,
    "between check and rename": 2,
    "between checkpoint and products": 2,
    "before the curves": 2,
    "before the events": 2,
    "at the end": 2,
}


def weights(seed: int, epoch: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 2), 100.0 * seed + epoch)}


def seed_of(content: dict[str, torch.Tensor]) -> int:
    """Return the seed of the run that has written these weights."""
    return int(content["weight"][0, 0]) // 100


def run_quickly(
    save: Path,
    *,
    seed: int,
    resume: bool = False,
    events: bool = False,
    at: Callable[[str, int], object] = lambda moment, epoch: None,
) -> None:
    """Do to a folder everything that a run does.

    Args:
        save: The folder.
        seed: The seed of the run.
        resume: Whether the run may continue one that is in the folder.
        events: Whether it writes events for TensorBoard.
        at: Called at each of `MOMENTS` with its name and the epoch.
    """
    flags = {"seed": seed, "lr": 0.1, "n_epochs": EPOCHS, "resume": resume, "save": str(save)}
    identity = RunIdentity(flags, free=frozenset({"resume", "save"}))
    epoch = 0

    def now(moment: str) -> None:
        at(moment, epoch)

    with acquire(save, identity, resume=resume) as folder, calling(now, folder):
        folder.add_writer(lambda directory: Moment(now, "before the curves"))
        folder.add_writer(lambda directory: PlainFile(directory, CURVES))
        folder.add_writer(lambda directory: PlainFile(directory, SUMMARY))
        folder.add_writer(lambda directory: Moment(now, "before the events"))
        if events:
            folder.add_writer(Events)
        now("before load")
        checkpoint = folder.load(n_epochs=EPOCHS)
        now("before config")
        folder.write_config({"flags": flags, **CONFIG})
        if checkpoint.epoch:
            folder.write_products(checkpoint)
        for epoch in range(checkpoint.epoch + 1, EPOCHS + 1):
            now("in training")
            train(checkpoint, seed, epoch)
            now("before the checkpoint")
            folder.save(checkpoint)
        now("at the end")


def train(checkpoint: Checkpoint, seed: int, epoch: int) -> None:
    checkpoint.rows = make_rows(epoch, test_error=0.5 if epoch == EPOCHS else None)
    checkpoint.network = checkpoint.chosen = weights(seed, epoch)


class Moment:
    """A writer that only calls `now`, with the name of a moment."""

    def __init__(self, now: Callable[[str], None], name: str):
        self.now = now
        self.name = name

    def write(self, rows: object) -> None:
        self.now(self.name)


class PlainFile:
    """A writer of a file that takes no time to make."""

    def __init__(self, directory: OpenFolder, name: str):
        self.directory = directory
        self.name = name

    def write(self, rows: object) -> None:
        self.directory.write(self.name, lambda file: file.write(b"contents"))


@contextmanager
def calling(now: Callable[[str], None], folder: RunFolder) -> Iterator[None]:
    """Call `now` at the moments inside what the folder does."""
    directory = folder.directory
    prepared, rename, write_products = directory._prepared, directory._rename, folder._write_products

    @contextmanager
    def prepare(name, write):
        with prepared(name, write) as temporary:
            if name == "checkpoint.pt":
                now("between temporary and check")
            yield temporary

    def rename_late(name, other):
        if other == "checkpoint.pt":
            now("between check and rename")
        rename(name, other)

    def write_products_late(checkpoint):
        now("between checkpoint and products")
        write_products(checkpoint)

    with (
        mock.patch.object(directory, "_prepared", prepare),
        mock.patch.object(directory, "_rename", rename_late),
        mock.patch.object(folder, "_write_products", write_products_late),
    ):
        yield


def seeds_in(folder: Path) -> set[int]:
    """Return the seeds of all runs that have written into a folder."""
    found = set()
    for path in folder.glob("*.pt"):
        content = files.load_tensors(path)
        parts = [content["network"], content["chosen"]] if "format" in content else [content]
        found |= {seed_of(part) for part in parts}
        if "format" in content:
            found.add(content["flags"]["seed"])
    return found
