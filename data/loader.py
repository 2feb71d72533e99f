"""Batches of normalised images on the device of their labels, each process reading its own part of them."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from data.augment import normalise
from data.datasets import DatasetSpec, validation_size
from data.epoch_plan import CROPS_ALONE, Augmentation, plan_epoch
from data.splits import Dataset, Images, split_validation
from data.transform import Transform


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: float32 (n, C, H, W), normalised. n is 0 for some processes if there are more of them than images.
        labels: int64 (n,). Of mixed images the probability of each class, float32 (n, classes).
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


class Loader:
    """Batches of normalised images with their labels, on the device of the labels.

    Iterating yields all images once, in their own order and without augmentation, in batches of batch_size; the last
    batch may be smaller. `epoch(e)` yields them shuffled and, with `augment`, cropped and flipped, and changed as
    `augmentation` says. Each of several processes gets its own part of every batch, possibly an empty one, so that all
    take the same number of steps.

    An image is mixed with the one before it in the whole batch, the first one with the last one. A process reads one
    image more for it, and results do not depend on the number of processes.

    Args:
        split: The images.
        batch_size: Images in a whole batch, 1 or more.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        seed: Order and augmentation of an epoch are a function of this and the epoch.
        augment: Whether `epoch` crops and flips each image on its own.
        augmentation: What `epoch` changes beside crops and flips.
        num_classes: Number of classes, which mixed labels need.
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
        augmentation: Augmentation = CROPS_ALONE,
        num_classes: int = 0,
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
        self.augmentation = augmentation
        self.num_classes = num_classes
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
        parts = list(self._parts())
        with closing(self.split.read(torch.arange(len(self.split)), [part for part, _ in parts])) as batches:
            for (part, size), pixels in zip(parts, batches, strict=True):
                yield Batch(normalise(pixels, self.mean, self.std), self.split.labels[part], size)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Generator[Batch]:
        """Yield the batches of an epoch, or those that are left of it.

        Args:
            epoch: The epoch, counted from 1.
            first_batch: Index of the batch to begin with; those before it are not read. May be the number of all.
        """
        plan = plan_epoch(
            len(self.split), seed=self.seed, epoch=epoch, augmentation=self.augmentation, size=self.split.size
        )
        parts = list(self._parts())[first_batch:]
        if not parts:
            return
        positions = [self._positions(part, size, with_partner=plan.mixing is not None) for part, size in parts]
        plan, reads = plan.at(torch.cat(positions)), consecutive([len(some) for some in positions])
        crops_itself = self.augment and self.split.crops_itself
        transform = Transform(
            plan,
            reads,
            mean=self.mean,
            std=self.std,
            crops=self.augment and not crops_itself,
            has_black_border=self.augmentation.crop_border == "black",
            num_classes=self.num_classes,
        )
        order = plan.order.to(self.device)
        with closing(self.split.read(plan.order, reads, plan.seed if crops_itself else None)) as batches:
            for number, ((_, size), read, pixels) in enumerate(zip(parts, reads, batches, strict=True)):
                yield Batch(*transform(pixels, self.split.labels[order[read]], number, read), size)

    def own_indices(self) -> Tensor:
        """Return the indices int64 (M,) of this process's images, in the order in which iterating yields them."""
        return torch.cat([torch.arange(part.start, part.stop) for part, _ in self._parts()])

    def _parts(self) -> Iterator[tuple[slice, int]]:
        """Yield this process's positions in each batch of an epoch, and the size of the whole batch."""
        for start in range(0, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            part = self.shard.part(size)
            yield slice(start + part.start, start + part.stop), size

    def _positions(self, part: slice, size: int, *, with_partner: bool) -> Tensor:
        """Return the positions in an epoch of the images that this process reads for a batch of some size.

        Args:
            part: Its part of the batch.
            size: Images in the whole batch.
            with_partner: Whether the image before the part comes first, if the part is not empty.
        """
        own = torch.arange(part.start, part.stop)
        if not (with_partner and len(own)):
            return own
        start = part.start // self.batch_size * self.batch_size
        before = start + (part.start - start - 1) % size
        return torch.cat([torch.tensor([before]), own])


def consecutive(sizes: Sequence[int]) -> list[slice]:
    """Return slices of some sizes, each of which begins where the one before it ends."""
    ends = [0, *accumulate(sizes)]
    return [slice(start, end) for start, end in pairwise(ends)]


def make_loaders(
    dataset: Dataset,
    spec: DatasetSpec,
    device: torch.device,
    *,
    batch_size: int,
    valid_size: int | None,
    augment: bool,
    seed: int,
    augmentation: Augmentation = CROPS_ALONE,
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
        augmentation: What is changed in training images beside crops and flips.
        shard: The part of each batch that is this process's.
        limit: The most batches of each loader in an epoch. None: all.

    Raises:
        DataError: If `valid_size` leaves no image for training, or is given though the data set has validation images.
    """
    train, valid = _training_and_validation(dataset, spec, valid_size=valid_size, seed=seed)
    loader = partial(Loader, batch_size=batch_size, mean=spec.mean, std=spec.std, shard=shard, limit=limit)
    num_classes = len(dataset.classes)
    return (
        loader(train.to(device), seed=seed, augment=augment, augmentation=augmentation, num_classes=num_classes),
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
