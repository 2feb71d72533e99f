"""The random choices of one epoch, drawn before it begins.

They are drawn on the CPU, and are functions of the seed, the epoch and the position of an image in it: they do not
depend on the device, on the sizes of batches or on the number of processes. Each kind of change beside crops and flips
has a generator of its own, so that it stays the same when another kind is switched on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from data.mixing import Mixing, draw_mixing
from data.rectangles import draw_erasing, draw_squares
from data.trivial_augment import draw_operations

PADDING = 4  # pixels on each side before a random crop, as in the paper


@dataclass(frozen=True)
class Augmentation:
    """What is changed in training images beside crops and flips. By default nothing is.

    Attributes:
        crop_border: Colour around an image before it is cropped: the mean of the data set, or black.
        trivial: Whether TrivialAugment changes each image by one operation.
        erasing: Probability that random erasing takes a rectangle from an image.
        cutout: Side in pixels of the square that cutout takes from each image; 0: none.
        mixup: A of mixup, whose weights are drawn from Beta(A, A); 0: none.
        cutmix: A of cutmix, whose areas are drawn from Beta(A, A); 0: none.
    """

    crop_border: Literal["mean", "black"] = "mean"
    trivial: bool = False
    erasing: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0


CROPS_ALONE = Augmentation()


@dataclass(frozen=True)
class EpochPlan:
    """The random choices of one epoch, for the image at each of N positions in it. None: there is no such change.

    Attributes:
        order: int64 (N,), index of the image.
        top: int64 (N,), first row of its crop, from 0 to 2 * PADDING.
        left: int64 (N,), first column of its crop, from 0 to 2 * PADDING.
        flip: bool (N,), whether it is mirrored.
        seed: int64 (N,), seed for all choices of its crop instead of these, if they depend on the size of a file's
            image.
        operation: int64 (N,), its operation of TrivialAugment.
        strength: int64 (N,), the strength of this operation.
        erased: int64 (N, 4), the rectangle that random erasing takes.
        cutout: int64 (N, 4), the rectangle that cutout takes.
        mixing: How it is mixed with the image before it.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    seed: Tensor
    operation: Tensor | None = None
    strength: Tensor | None = None
    erased: Tensor | None = None
    cutout: Tensor | None = None
    mixing: Mixing | None = None

    def at(self, positions: Tensor) -> "EpochPlan":
        """Return the choices for some positions, int64 (M,)."""
        return self._map(lambda values: values[positions])

    def to(self, device: torch.device) -> "EpochPlan":
        """Return the same on a device."""
        return self._map(lambda values: values.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "EpochPlan":
        def changed(choices: Any) -> Any:
            if choices is None:
                return None
            return Mixing(*map(change, choices)) if isinstance(choices, Mixing) else change(choices)

        return EpochPlan(*(changed(getattr(self, field.name)) for field in fields(self)))


def plan_epoch(
    num_images: int,
    *,
    seed: int,
    epoch: int,
    augmentation: Augmentation = CROPS_ALONE,
    size: tuple[int, int] = (32, 32),
) -> EpochPlan:
    """Draw all choices of an epoch. They are a function of the arguments alone.

    Args:
        num_images: N.
        seed: Seed of the run.
        epoch: The epoch, counted from 1.
        augmentation: What is changed beside crops and flips.
        size: Height and width of the images.
    """

    def generator(name: str = "") -> torch.Generator:
        of_epoch = random.Random(f"{name}seed {seed}, epoch {epoch}")
        return torch.Generator().manual_seed(of_epoch.getrandbits(63))

    operation = strength = erased = cutout = mixing = None
    if augmentation.trivial:
        operation, strength = draw_operations(num_images, generator("TrivialAugment, "))
    if augmentation.erasing:
        erased = draw_erasing(num_images, augmentation.erasing, size=size, generator=generator("random erasing, "))
    if augmentation.cutout:
        cutout = draw_squares(num_images, augmentation.cutout, size=size, generator=generator("cutout, "))
    if augmentation.mixup or augmentation.cutmix:
        mixup, cutmix = augmentation.mixup, augmentation.cutmix
        mixing = draw_mixing(num_images, mixup=mixup, cutmix=cutmix, size=size, generator=generator("mixing, "))
    first = generator()
    return EpochPlan(
        order=torch.randperm(num_images, generator=first),
        top=torch.randint(2 * PADDING + 1, (num_images,), generator=first),
        left=torch.randint(2 * PADDING + 1, (num_images,), generator=first),
        flip=torch.randint(2, (num_images,), generator=first).bool(),
        seed=torch.randint(2**63 - 1, (num_images,), generator=first),
        operation=operation,
        strength=strength,
        erased=erased,
        cutout=cutout,
        mixing=mixing,
    )
