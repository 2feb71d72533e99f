"""Batches of normalised images on the device of their labels, each process reading its own part of them."""

import random
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data.augment import crop_and_flip, normalise
from data.datasets import DatasetSpec, validation_size
from data.splits import Dataset, Images, split_validation

PADDING = 4  # pixels on each side before a random crop, as in the paper


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: float32 (n, 3, H, W), normalised. n is 0 for some processes if there are more of them than images.
        labels: int64 (n,).
        size: Images in the whole batch, in all processes together.
    """

    images: Tensor
    labels: Tensor
    size: int


@dataclass(frozen=True)
class Shard:
    """Which part of each batch a process reads, where several processes train one network.

    Attributes:
        rank: Index of this process, from 0 to world_size - 1.
        world_size: Number of processes.

    Raises:
        ValueError: If the rank is out of range.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank is {self.rank}, but must be 0 or more and below {self.world_size}, the number of processes"
            )

    def part(self, num_items: int) -> slice:
        """Return the positions of this process in a batch of `num_items`.

        The parts of all processes follow each other without a gap and have the sizes of `torch.tensor_split`: they
        differ by at most 1, and the larger ones come first. Some are empty if there are fewer items than processes.
        """
        size, larger = divmod(num_items, self.world_size)
        start = self.rank * size + min(self.rank, larger)
        return slice(start, start + size + (self.rank < larger))


WHOLE_BATCH = Shard()  # of the only process


@dataclass(frozen=True)
class EpochPlan:
    """The random choices of one epoch, drawn in advance.

    Attributes:
        order: int64 (N,), index of the image at each position in the epoch.
        top: int64 (N,), first row of its crop, from 0 to 2 * PADDING.
        left: int64 (N,), first column of its crop, from 0 to 2 * PADDING.
        flip: bool (N,), whether it is mirrored.
        seed: int64 (N,), seed for all choices instead of these, if they depend on the size of a file's image.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    seed: Tensor


def plan_epoch(num_images: int, *, seed: int, epoch: int) -> EpochPlan:
    """Draw order, crops and flips of an epoch. They are a function of the three arguments alone.

    They are drawn on the CPU, so that they do not depend on the training device.
    """
    generator = torch.Generator().manual_seed(random.Random(f"seed {seed}, epoch {epoch}").getrandbits(63))
    return EpochPlan(
        order=torch.randperm(num_images, generator=generator),
        top=torch.randint(2 * PADDING + 1, (num_images,), generator=generator),
        left=torch.randint(2 * PADDING + 1, (num_images,), generator=generator),
        flip=torch.randint(2, (num_images,), generator=generator).bool(),
        seed=torch.randint(2**63 - 1, (num_images,), generator=generator),
    )


class Loader:
    """Batches of normalised images with their labels, on the device of the labels.

    Iterating yields all images once, in their own order and without augmentation, in batches of batch_size; the last
    batch may be smaller. `epoch(e)` yields them shuffled and, with `augment`, cropped and flipped. Each of several
    processes gets its own part of every batch, possibly an empty one, so that all take the same number of steps.

    Args:
        split: The images.
        batch_size: Images in a whole batch, 1 or more.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        seed: Order and augmentation of an epoch are a function of this and the epoch.
        augment: Whether `epoch` crops and flips each image on its own.
        shard: The part of each batch that is this process's.
        limit: The most batches in an epoch, for a trial. None: all.
    """

    def __init__(
        self,
        split: Images,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        augment: bool = False,
        shard: Shard = WHOLE_BATCH,
        limit: int | None = None,
    ):
        self.split = split
        self.device = split.labels.device
        self.batch_size = batch_size
        self.mean = torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(-1, 1, 1)
        self.seed = seed
        self.augment = augment
        self.shard = shard
        self.limit = limit

    @property
    def num_images(self) -> int:
        """Images in an epoch, in all processes together."""
        every = len(self.split)
        return every if self.limit is None else min(every, self.limit * self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Generator[Batch]:
        return self._batches(torch.arange(len(self.split)), None)

    def epoch(self, epoch: int) -> Generator[Batch]:
        """Yield the batches of an epoch. Epochs count from 1."""
        plan = plan_epoch(len(self.split), seed=self.seed, epoch=epoch)
        return self._batches(plan.order, plan if self.augment else None)

    def own_indices(self) -> Tensor:
        """Return the indices int64 (M,) of this process's images, in the order in which iterating yields them."""
        return torch.cat([torch.arange(part.start, part.stop) for part, _ in self._parts()])

    def _batches(self, order: Tensor, plan: EpochPlan | None) -> Generator[Batch]:
        """Yield the batches of an order, augmented as planned."""
        parts = list(self._parts())
        by_file, by_batch = (plan, None) if self.split.crops_itself else (None, plan)
        pixels = self.split.read(order, [part for part, _ in parts], by_file.seed if by_file else None)
        order = order.to(self.device)
        choices = _on_device(by_batch, self.device) if by_batch else None
        with closing(pixels):
            for (part, size), batch in zip(parts, pixels, strict=True):
                images = normalise(batch, self.mean, self.std)
                if choices:
                    top, left, flip = (choice[part] for choice in choices)
                    images = crop_and_flip(images, top, left, flip, padding=PADDING)
                yield Batch(images, self.split.labels[order[part]], size)

    def _parts(self) -> Iterator[tuple[slice, int]]:
        """Yield this process's positions in each batch of an epoch, and the size of the whole batch."""
        for start in range(0, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            part = self.shard.part(size)
            yield slice(start + part.start, start + part.stop), size


def _on_device(plan: EpochPlan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return plan.top.to(device), plan.left.to(device), plan.flip.to(device)


def make_loaders(
    dataset: Dataset,
    spec: DatasetSpec,
    device: torch.device,
    *,
    batch_size: int,
    valid_size: int | None,
    augment: bool,
    seed: int,
    shard: Shard = WHOLE_BATCH,
    limit: int | None = None,
) -> tuple[Loader, Loader | None, Loader]:
    """Return loaders of training, validation and test images. The second is None if no image is held out.

    Args:
        dataset: All images.
        spec: How to normalise them, and how many to hold out by default.
        device: Device of the batches. Images in memory are moved there.
        batch_size: Images in a batch, in all processes together, 1 or more.
        valid_size: Training images to hold out for validation, see `validation_size`.
        augment: Whether to crop and flip training images. Validation and test images are never augmented.
        seed: The held-out images, and order and augmentation of each epoch, are functions of it.
        shard: The part of each batch that is this process's.
        limit: The most batches of each loader in an epoch. None: all.

    Raises:
        DataError: If `valid_size` leaves no image for training, or is given though the data set has validation images.
    """
    train, valid = _training_and_validation(dataset, spec, valid_size=valid_size, seed=seed)
    loader = partial(Loader, batch_size=batch_size, mean=spec.mean, std=spec.std, shard=shard, limit=limit)
    return (
        loader(train.to(device), seed=seed, augment=augment),
        loader(valid.to(device)) if valid else None,
        loader(dataset.test.to(device)),
    )


def make_test_loader(dataset: Dataset, spec: DatasetSpec, device: torch.device, *, batch_size: int) -> Loader:
    """Return a loader of the test images alone, see `make_loaders`."""
    return Loader(dataset.test.to(device), batch_size=batch_size, mean=spec.mean, std=spec.std)


def make_validation_loader(
    dataset: Dataset, spec: DatasetSpec, device: torch.device, *, batch_size: int, valid_size: int | None, seed: int
) -> Loader | None:
    """Return a loader of the validation images alone, see `make_loaders`; None if no image is held out."""
    _, valid = _training_and_validation(dataset, spec, valid_size=valid_size, seed=seed)
    return Loader(valid.to(device), batch_size=batch_size, mean=spec.mean, std=spec.std) if valid else None


def _training_and_validation(
    dataset: Dataset, spec: DatasetSpec, *, valid_size: int | None, seed: int
) -> tuple[Images, Images | None]:
    size = validation_size(dataset, spec, valid_size)
    if size is None:
        return dataset.train, dataset.valid
    return split_validation(dataset.train, size=size, seed=seed)
