"""What is read of a data set: images with labels, names of classes, and which images are held out for validation."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from data.errors import DataError


class Images(Protocol):
    """Images with their labels, in memory or as files.

    Attributes:
        labels: int64 (N,), from 0 to the number of classes - 1, on the device where batches are wanted.
        crops_itself: Whether `read` augments images that come with a seed. If not, all have one size, and whole
            batches of them are augmented.
        in_memory: Whether `read` has nothing to read that could fail.
    """

    labels: Tensor
    crops_itself: bool
    in_memory: bool

    def __len__(self) -> int: ...

    def names(self) -> Sequence[str]:
        """Of the files, below the folder that they have in common; empty for images in memory."""
        ...

    def take(self, indices: Tensor) -> Self:
        """The images at some indices (M,)."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same images, for batches on a device."""
        ...

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None) -> Iterator[Tensor]:
        """Yield a batch of pixels for each part of an order.

        Args:
            order: int64 (N,) on the CPU, the image at each place.
            parts: Places of each batch.
            seeds: int64 (N,) on the CPU, for the random choices about the image at each place; None: choose nothing.

        Returns:
            uint8 (n, 3, H, W) on the device of `labels`; n may be 0.
        """
        ...


@dataclass(frozen=True)
class Split:
    """Images in memory, all of one size.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), from 0 to the number of classes - 1.
    """

    images: Tensor
    labels: Tensor
    crops_itself = False
    in_memory = True

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Sequence[str]:
        """None."""
        return ()

    def take(self, indices: Tensor) -> "Split":
        """The images at some indices (M,)."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same images on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the pixels of each part, see `Images`."""
        order = order.to(self.images.device)
        for part in parts:
            yield self.images[order[part]]


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        train: All training images.
        test: All test images.
        classes: Names by label.
        valid: Validation images, where the data set comes with some of its own.
        notes: Lines for the user about what was found.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    valid: Images | None = None
    notes: tuple[str, ...] = ()

    def sizes(self, *, held_out: int = 0) -> dict[str, int]:
        """How many images there are, by "train", "valid" and "test".

        Args:
            held_out: This many of the training images are validation images instead.
        """
        valid = len(self.valid or ()) + held_out
        return {"train": len(self.train) - held_out, "valid": valid, "test": len(self.test)}

    def digest(self) -> int:
        """A number of 62 bits that tells data sets apart by their classes, labels and names of files.

        Where the files lie and what is in them does not count.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for images in (self.train, self.valid, self.test):
            if images is not None:
                digest.update(images.labels.cpu().numpy().tobytes())
                digest.update("\0".join(images.names()).encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest()[:8]) >> 2


def split_validation(train: Images, *, size: int, seed: int) -> tuple[Images, Images]:
    """Hold out `size` images at random: returns the remaining training images, in their order, and the held-out ones.

    Args:
        train: All training images.
        size: From 0 to one less than their number.
        seed: The choice is a function of this and the number of images.

    Raises:
        DataError: If no image would remain for training.
    """
    if not 0 <= size < len(train):
        raise DataError(f"--valid_size is {size}, but must be 0 or more and below {len(train):,}, the training images")
    generator = torch.Generator().manual_seed(random.Random(f"validation split, seed {seed}").getrandbits(63))
    order = torch.randperm(len(train), generator=generator)
    return train.take(order[size:].sort().values), train.take(order[:size].sort().values)
