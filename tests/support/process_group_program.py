"""The program that tests/train/test_processes.py starts by torchrun: each process does parts of a run.

Each process writes one file into the folder that it is given. The results are compared with those of a single process.
"""

import copy
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from data.epoch_plan import Augmentation
from data.loader import Loader, Shard
from data.splits import Split
from models import densenet_bc
from tests.support.tensor_measurements import frozen
from train.ema import ExponentialMovingAverage
from train.engine import evaluate, train_one_epoch
from train.metrics import NonFiniteLoss
from train.optim import make_optimizer
from train.processes import ProcessGroup, connected, current_group
from train.replicas import replicate
from train.signals import GracefulStop, Stopped
from train.step import Stepper
from train.terminal import leave

CPU = torch.device("cpu")
NUM_IMAGES = 23
BATCH_SIZE = 7  # the last batch has 2 images
MIXED = {"augmentation": Augmentation(trivial=True, mixup=1.0, cutmix=1.0), "num_classes": 10}


class Bar:
    """A bar that wants to show something after each step."""

    epoch = 1
    name = "validation"

    def advance(self, num_images):
        """Count nothing."""

    def is_due(self):
        """Only the main process has a clock here."""
        return current_group().is_main

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


def train(processes, *, epochs=3, accum_steps=1, is_frozen=True):
    """Train a small network for some epochs; return metrics, and weights with their averages."""
    torch.manual_seed(processes.rank)  # processes must agree on weights by themselves
    network = densenet_bc(10, 2, efficient="buffer").double()
    if processes.is_main:
        torch.manual_seed(0)
        network.load_state_dict(densenet_bc(10, 2).double().state_dict())
    if is_frozen:
        frozen(network)
    shard = Shard(processes.rank, processes.world_size)
    loader = Loader(
        split(), batch_size=BATCH_SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, augment=True, shard=shard, **MIXED
    )
    optimizer = make_optimizer(network.parameters(), lr=0.05, momentum=0.9, wd=1e-3)
    replicas = replicate(network, CPU, processes=processes)
    average = ExponentialMovingAverage(network, 0.9)
    stepper = Stepper(
        replicas.training, optimizer, processes=processes, accum_steps=accum_steps, clip_grad=0.2, average=average
    )
    seen = []
    for epoch in range(1, epochs + 1):
        seen.append(train_one_epoch(stepper, Doubled(loader).epoch(epoch), Bar(), GracefulStop(processes)))
        processes.broadcast(network.buffers())
        processes.broadcast(average.buffers().values())
        seen.append(evaluate(replicas.evaluation, Doubled(loader), Bar(), GracefulStop(processes), processes))
    averages = {f"average of {name}": value for name, value in average.state_dict().items()}
    return [number for metrics in seen for number in (metrics.loss, metrics.error)], network.state_dict() | averages


def count_statistics(processes):
    """Train with weights that never move; return running statistics before and after the processes share them.

    The third ones are those of a network that has seen only the images of this process.
    """
    torch.manual_seed(processes.rank)
    network = densenet_bc(10, 2)
    network.features.norm_final.running_mean.fill_(processes.rank)  # as if only the main process had read weights
    replicas = replicate(network, CPU, processes=processes)
    alone = copy.deepcopy(network).train()
    optimizer = make_optimizer(network.parameters(), lr=0.0, momentum=0.9, wd=0)
    stepper = Stepper(replicas.training, optimizer, processes=processes)
    shard = Shard(processes.rank, processes.world_size)
    loader = Loader(split(), batch_size=BATCH_SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, shard=shard)
    train_one_epoch(stepper, loader.epoch(1), Bar(), GracefulStop(processes))
    for images, _, _ in loader.epoch(1):
        if len(images):
            alone(images)
    before = [buffer.clone() for buffer in network.buffers()]
    processes.broadcast(network.buffers())
    return before, [*network.buffers()], [*alone.buffers()]


def fail(processes):
    """Train where one image, which only one process sees, makes the loss NaN; return which batch is blamed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    replicas = replicate(network, CPU, processes=processes)
    stepper = Stepper(
        replicas.training, make_optimizer(network.parameters(), lr=1, momentum=0, wd=0), processes=processes
    )
    good = torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), processes.world_size
    bad = (good[0] * torch.nan, *good[1:]) if processes.rank == processes.world_size - 1 else good
    taken = 0

    def batches():
        nonlocal taken
        for batch in [good, good, bad, good, good]:
            taken += 1
            yield batch

    try:
        train_one_epoch(stepper, batches(), Bar(), GracefulStop(processes))
    except NonFiniteLoss as failure:
        return failure.batch, taken, network.state_dict()
    return None


def stop(processes):
    """Evaluate many batches where the last process gets a signal at the second one; return where all stop."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    taken = 0

    def batches():
        nonlocal taken
        for taken in range(1, 100):
            if taken == 2 and processes.rank == processes.world_size - 1:
                signal.raise_signal(signal.SIGTERM)
            yield torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), processes.world_size

    try:
        with GracefulStop(processes) as stop:
            evaluate(network, batches(), Bar(), stop, processes)
    except Stopped as stopped:
        return str(stopped), stopped.exit_code, taken
    return None


def hear(processes):
    """Return what this process learns of the work of the main process."""
    heard = processes.on_main(lambda: {"rank": processes.rank, "tensor": torch.arange(3)})
    try:
        processes.on_main(int, "no number")
    except ValueError:
        ended = "ValueError"
    except SystemExit as end:
        ended = end.code
    return (
        heard,
        ended,
        processes.all_reduce_max(processes.rank, -processes.rank),
        (processes.all_equal(2**62 - 1), processes.all_equal(processes.rank)),
    )


def see(processes, folder):
    """Return which processes did the work before this one, where the last process is the second one of its machine."""
    on_machines = ProcessGroup(processes.rank, processes.world_size, local_rank=int(processes.rank == 2))

    def work():
        seen = sorted(path.name for path in folder.iterdir())
        (folder / str(processes.rank)).touch()
        return seen

    processes.on_main(folder.mkdir)
    return on_machines.main_first(work)


def main(folder):
    with connected():
        processes = current_group()
        result = {
            "frozen": train(processes),
            "parts": train(processes, accum_steps=2),
            "moving": train(processes, epochs=1, is_frozen=False),
            "statistics": count_statistics(processes),
            "failed": fail(processes),
            "stopped": stop(processes),
            "heard": hear(processes),
            "seen": see(processes, folder / f"seen-{processes.world_size}"),
        }
        torch.save(result, folder / f"{processes.world_size}-{processes.rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)
    main(Path(sys.argv[1]))
    leave(0)
