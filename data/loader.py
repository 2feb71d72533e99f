"""Batches of prepared images on the device that holds the data set."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.augment import crop_and_flip, normalise
from data.datasets import Dataset, Source, Split, split_validation

PADDING = 4  # pixels on each side before a random crop, as in the paper


@dataclass(frozen=True)
class Plan:
    """The random choices of one epoch, drawn before it begins.

    Attributes:
        order: int64 (N,), the image at each place of the epoch.
        top: int64 (N,), the first row of its crop, from 0 to 2 * PADDING.
        left: int64 (N,), the first column of its crop.
        flip: bool (N,), whether it is mirrored.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor


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
    )


class Loader:
    """Batches of normalised images with their labels, made on the device that holds the images.

    Iterating gives all images once, in their own order, without augmentation: (images, labels) of shapes
    (n, 3, H, W) float32 and (n,) int64, n = batch_size or fewer in the last batch. `epoch(e)` gives them shuffled
    and, if asked for, augmented.

    Args:
        split: Images and labels, on the device where the batches are wanted.
        batch_size: 1 or more.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, likewise.
        seed: Order and augmentation of an epoch are a function of this and the epoch.
        augment: Crop and flip each image on its own in `epoch`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        augment: bool = False,
    ):
        device = split.images.device
        self.split = split
        self.batch_size = batch_size
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        self.seed = seed
        self.augment = augment

    @property
    def num_images(self) -> int:
        """Images in an epoch."""
        return len(self.split)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.split.images.split(self.batch_size)
        labels = self.split.labels.split(self.batch_size)
        for image_batch, label_batch in zip(images, labels, strict=True):
            yield normalise(image_batch, self.mean, self.std), label_batch

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, whose number counts from 1."""
        plan = plan_epoch(self.num_images, seed=self.seed, epoch=epoch)
        device = self.split.images.device
        choices = (choice.to(device).split(self.batch_size) for choice in (plan.order, plan.top, plan.left, plan.flip))
        for order, top, left, flip in zip(*choices, strict=True):
            images = normalise(self.split.images[order], self.mean, self.std)
            if self.augment:
                images = crop_and_flip(images, top, left, flip, padding=PADDING)
            yield images, self.split.labels[order]


def make_loaders(
    source: Source,
    dataset: Dataset,
    device: torch.device,
    *,
    batch_size: int,
    valid_size: int,
    augment: bool,
    seed: int,
) -> tuple[Loader, Loader | None, Loader]:
    """Training, validation and test batches; no validation batches where `valid_size` is 0.

    Args:
        source: All images.
        dataset: How they are normalised.
        device: Where images are held and batches made.
        batch_size: 1 or more.
        valid_size: Training images held out, see `split_validation`.
        augment: Crop and flip training images. Validation and test images are never augmented.
        seed: The split, and order and augmentation of each epoch, are functions of it.

    Raises:
        DataError: If `valid_size` leaves no image for training.
    """
    train, valid = split_validation(source.train, size=valid_size, seed=seed)
    preparation = {"batch_size": batch_size, "mean": dataset.mean, "std": dataset.std}
    return (
        Loader(train.to(device), seed=seed, augment=augment, **preparation),
        Loader(valid.to(device), **preparation) if valid_size else None,
        Loader(source.test.to(device), **preparation),
    )
