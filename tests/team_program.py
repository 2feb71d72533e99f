"""What each process of tests/test_team.py does: parts of a run, checked against a process that is alone.

Started by torchrun. Writes to the folder that it is given, one file for each process.
"""

import signal
import sys
from pathlib import Path

import torch
from torch import nn

from data.datasets import Split
from data.loader import Loader
from data.share import Share
from models import densenet_bc
from tests.tensors import frozen
from train.engine import evaluate, train_one_epoch
from train.metrics import NonFiniteLoss
from train.optim import make_optimizer
from train.replicas import replicate
from train.step import Stepper
from train.stops import Stop, Stopped, after_the_step
from train.team import Team, connected, here
from train.terminal import leave

CPU = torch.device("cpu")
NUM_IMAGES = 23
BATCH_SIZE = 7  # the last batch has 2 images


class Bar:
    """A bar that wants to show something after each step."""

    epoch = 1
    name = "validation"

    def advance(self, num_images):
        """Count nothing."""

    def is_due(self):
        """Only the first process has a clock here."""
        return here().is_first

    def show(self, metrics):
        """Show nothing."""


def split():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (NUM_IMAGES, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(10, (NUM_IMAGES,), generator=generator))


class Doubled:
    """Batches in 64 bits."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return ((images.double(), labels, size) for images, labels, size in self.loader)

    def epoch(self, epoch):
        return ((images.double(), labels, size) for images, labels, size in self.loader.epoch(epoch))


def train(team, *, epochs=3, accum_steps=1, is_frozen=True):
    """Train a small network for some epochs; return metrics and weights."""
    torch.manual_seed(team.rank)  # processes must agree on weights by themselves
    network = densenet_bc(10, 2, efficient="buffer").double()
    if team.is_first:
        torch.manual_seed(0)
        network.load_state_dict(densenet_bc(10, 2).double().state_dict())
    if is_frozen:
        frozen(network)
    share = Share(team.rank, team.count)
    loader = Loader(split(), batch_size=BATCH_SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, augment=True, share=share)
    optimizer = make_optimizer(network.parameters(), lr=0.05, momentum=0.9, wd=1e-3)
    replicas = replicate(network, CPU, team=team)
    stepper = Stepper(replicas.training, optimizer, team=team, accum_steps=accum_steps)
    seen = []
    for epoch in range(1, epochs + 1):
        seen.append(train_one_epoch(stepper, Doubled(loader).epoch(epoch), Bar(), Stop(team)))
        team.share_first(network.buffers())
        seen.append(evaluate(replicas.evaluation, Doubled(loader), Bar(), Stop(team), team))
    return [number for metrics in seen for number in (metrics.loss, metrics.error)], network.state_dict()


def fail(team):
    """Train where one image, which only one process sees, makes the loss NaN; return which batch is blamed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    replicas = replicate(network, CPU, team=team)
    stepper = Stepper(replicas.training, make_optimizer(network.parameters(), lr=1, momentum=0, wd=0), team=team)
    good = torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), team.count
    bad = (good[0] * torch.nan, *good[1:]) if team.rank == team.count - 1 else good
    taken = 0

    def batches():
        nonlocal taken
        for batch in [good, good, bad, good, good]:
            taken += 1
            yield batch

    try:
        train_one_epoch(stepper, batches(), Bar(), Stop(team))
    except NonFiniteLoss as failure:
        return failure.batch, taken, network.state_dict()
    return None


def stop(team):
    """Evaluate four batches where the last process gets a signal at the second one; return where all stop."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    taken = 0

    def batches():
        nonlocal taken
        for taken in range(1, 5):
            if taken == 2 and team.rank == team.count - 1:
                signal.raise_signal(signal.SIGTERM)
            yield torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), team.count

    try:
        with after_the_step(team) as stop:
            evaluate(network, batches(), Bar(), stop, team)
    except Stopped as stopped:
        return str(stopped), stopped.exit_code, taken
    return None


def hear(team):
    """What the first process does, the others learn."""
    heard = team.first(lambda: {"rank": team.rank, "tensor": torch.arange(3)})
    try:
        team.first(int, "no number")
    except ValueError:
        ended = "ValueError"
    except SystemExit as end:
        ended = end.code
    return heard, ended, team.largest(team.rank, -team.rank), (team.agrees_on(2**62 - 1), team.agrees_on(team.rank))


def see(team, folder):
    """Who has done the work before this process did, where the last process is the second one of its machine."""
    on_machines = Team(team.rank, team.count, local_rank=int(team.rank == 2))

    def work():
        seen = sorted(path.name for path in folder.iterdir())
        (folder / str(team.rank)).touch()
        return seen

    team.first(folder.mkdir)
    return on_machines.first_then_others(work)


def main(folder):
    with connected():
        team = here()
        result = {
            "frozen": train(team),
            "parts": train(team, accum_steps=2),
            "moving": train(team, epochs=1, is_frozen=False),
            "failed": fail(team),
            "stopped": stop(team),
            "heard": hear(team),
            "seen": see(team, folder / f"seen-{team.count}"),
        }
        torch.save(result, folder / f"{team.count}-{team.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
