"""Batches of prepared images on the device where they are wanted."""

import random
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.augment import crop_and_flip, normalise
from data.datasets import Dataset, validation_size
from data.share import ALONE, Share
from data.source import Images, Source, split_validation

PADDING = 4  # pixels on each side before a random crop, as in the paper


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: float32 (n, 3, H, W), normalised. n is 0 where there are more processes than images.
        labels: int64 (n,).
        size: Images of the whole batch, on all processes together.
    """

    images: Tensor
    labels: Tensor
    size: int


@dataclass(frozen=True)
class Plan:
    """The random choices of one epoch, drawn before it begins.

    Attributes:
        order: int64 (N,), the image at each place of the epoch.
        top: int64 (N,), the first row of its crop, from 0 to 2 * PADDING.
        left: int64 (N,), the first column of its crop.
        flip: bool (N,), whether it is mirrored.
        seed: int64 (N,), of all choices about it in place of these, where they depend on the size of its file.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    seed: Tensor


def plan_epoch(num_images: int, *, seed: int, epoch: int) -> Plan:
    """Draw order, crops and flips of an epoch, which are a function of the three arguments alone.

    They are drawn on the CPU, so that they do not depend on the training device either.
    """
    generator = torch.Generator().manual_seed(random.Random(f"seed {seed}, epoch {epoch}").getrandbits(63))
    return Plan(
        order=torch.randperm(num_images, generator=generator),
        top=torch.randint(2 * PADDING + 1, (num_images,), generator=generator),
        left=torch.randint(2 * PADDING + 1, (num_images,), generator=generator),
        flip=torch.randint(2, (num_images,), generator=generator).bool(),
        seed=torch.randint(2**63 - 1, (num_images,), generator=generator),
    )


class Loader:
    """Batches of normalised images with their labels, on the device of the labels.

    Iterating gives all images once, in their own order, without augmentation; a batch has batch_size images, the last
    one possibly fewer. `epoch(e)` gives them shuffled and, if asked for, augmented. Of several processes each gets
    its own part of every batch, possibly an empty one, so that all of them take the same number of steps.

    Args:
        split: What to read.
        batch_size: Images of a whole batch, 1 or more.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, likewise.
        seed: Order and augmentation of an epoch are a function of this and the epoch.
        augment: Crop and flip each image on its own in `epoch`.
        share: Which part of each batch is this process's.
        limit: At most so many batches, for a trial. None: all.
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
        share: Share = ALONE,
        limit: int | None = None,
    ):
        self.split = split
        self.device = split.labels.device
        self.batch_size = batch_size
        self.mean = torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(-1, 1, 1)
        self.seed = seed
        self.augment = augment
        self.share = share
        self.limit = limit

    @property
    def num_images(self) -> int:
        """Images in an epoch, on all processes together."""
        every = len(self.split)
        return every if self.limit is None else min(every, self.limit * self.batch_size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Generator[Batch]:
        return self._batches(torch.arange(len(self.split)), None)

    def epoch(self, epoch: int) -> Generator[Batch]:
        """Yield the batches of an epoch, whose number counts from 1."""
        plan = plan_epoch(len(self.split), seed=self.seed, epoch=epoch)
        return self._batches(plan.order, plan if self.augment else None)

    def own_images(self) -> Images:
        """This process's images in the order in which iterating gives them."""
        return self.split.take(torch.cat([torch.arange(part.start, part.stop) for part, _ in self._parts()]))

    def _batches(self, order: Tensor, plan: Plan | None) -> Generator[Batch]:
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
                    images = crop_and_flip(images, *(choice[part] for choice in choices), padding=PADDING)
                yield Batch(images, self.split.labels[order[part]], size)

    def _parts(self) -> Iterator[tuple[slice, int]]:
        """This process's places in each batch of an epoch, and the size of the whole batch."""
        for start in range(0, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            part = self.share.part(size)
            yield slice(start + part.start, start + part.stop), size


def _on_device(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return plan.top.to(device), plan.left.to(device), plan.flip.to(device)


def make_loaders(
    source: Source,
    dataset: Dataset,
    device: torch.device,
    *,
    batch_size: int,
    valid_size: int | None,
    augment: bool,
    seed: int,
    share: Share = ALONE,
    limit: int | None = None,
) -> tuple[Loader, Loader | None, Loader]:
    """Training, validation and test batches; no validation batches where `valid_size` is 0.

    Args:
        source: All images.
        dataset: How they are normalised, and how many are held out by default.
        device: Where batches are wanted. Images in memory are held there too.
        batch_size: 1 or more, on all processes together.
        valid_size: Training images held out, see `validation_size`.
        augment: Crop and flip training images. Validation and test images are never augmented.
        seed: The split, and order and augmentation of each epoch, are functions of it.
        share: Which part of each batch is this process's.
        limit: At most so many batches of each kind in an epoch. None: all.

    Raises:
        DataError: If `valid_size` leaves no image for training, or the source has validation images of its own.
    """
    train, valid = source.train, source.valid
    size = validation_size(source, dataset, valid_size)
    if size is not None:
        train, valid = split_validation(source.train, size=size, seed=seed)
    preparation = {"batch_size": batch_size, "mean": dataset.mean, "std": dataset.std, "share": share, "limit": limit}
    return (
        Loader(train.to(device), seed=seed, augment=augment, **preparation),
        Loader(valid.to(device), **preparation) if len(valid) else None,
        make_test_loader(source, dataset, device, batch_size=batch_size, share=share, limit=limit),
    )


def make_test_loader(
    source: Source,
    dataset: Dataset,
    device: torch.device,
    *,
    batch_size: int,
    share: Share = ALONE,
    limit: int | None = None,
) -> Loader:
    """Test batches alone, see `make_loaders`."""
    test = source.test.to(device)
    return Loader(test, batch_size=batch_size, mean=dataset.mean, std=dataset.std, share=share, limit=limit)
