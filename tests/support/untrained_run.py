"""A run that trains nothing: all that it does to its folder, with a place for a test at each step.

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
from train.run.acquire import claim
from train.run.checkpoint import Checkpoint
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
    """The seed of the run whose weights these are."""
    return int(content["weight"][0, 0]) // 100


def run_quickly(
    save: Path,
    *,
    seed: int,
    resume: bool = False,
    events: bool = False,
    at: Callable[[str, int], object] = lambda moment, epoch: None,
) -> None:
    """Do to a folder what a run does.

    Args:
        save: The folder.
        seed: Of the run.
        resume: Whether it may go on with what is there.
        events: Whether it writes them for TensorBoard.
        at: Called at each of `MOMENTS` with the epoch.
    """
    flags = {"seed": seed, "lr": 0.1, "n_epochs": EPOCHS, "resume": resume, "save": str(save)}
    epoch = 0

    def now(moment: str) -> None:
        at(moment, epoch)

    with claim(save, flags, defaults={}) as folder, watched(folder, now):
        folder.writers.append(lambda rows: now("before the events"))
        if events:
            folder.writers.append(Events(folder.held).write)
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


@contextmanager
def watched(folder: RunFolder, now: Callable[[str], None]) -> Iterator[None]:
    """Call `now` inside what the folder does, and draw no curves."""
    held, prepared, rename, write_products = (
        folder.held,
        folder.held._prepared,
        folder.held._rename,
        folder._write_products,
    )

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

    def draw(rows, file, **words):
        now("before the curves")
        file.write(b"curves")

    with (
        mock.patch.object(held, "_prepared", prepare),
        mock.patch.object(held, "_rename", rename_late),
        mock.patch.object(folder, "_write_products", write_products_late),
        mock.patch("commands.train.curves.draw_curves", draw),
    ):
        yield


def seeds_in(folder: Path) -> set[int]:
    """The seeds of all runs that have written into a folder."""
    found = set()
    for path in folder.glob("*.pt"):
        content = files.load_tensors(path)
        parts = [content["network"], content["chosen"]] if "format" in content else [content]
        found |= {seed_of(part) for part in parts}
        if "format" in content:
            found.add(content["flags"]["seed"])
    return found
