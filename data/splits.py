"""A data set as it was loaded: training, validation and test images with their labels, and the names of the classes."""

import hashlib
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError, listed


class Images(Protocol):
    """Images with their labels, in memory or as files."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,), from 0 to the number of classes - 1, on the device of the batches."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        ...

    @property
    def crops_itself(self) -> bool:
        """Whether `read` crops at random. If not, all images have one size, and whole batches are augmented."""
        ...

    def __len__(self) -> int: ...

    def names(self) -> Sequence[str]:
        """Return the paths of files relative to their common folder; empty for images in memory."""
        ...

    def take(self, indices: Tensor) -> Self:
        """Return the images at some indices, int64 (M,)."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the same images, for batches on a device."""
        ...

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None = None) -> Generator[Tensor]:
        """Yield the pixels of each part of an order.

        Args:
            order: int64 (N,) on the CPU, the index of the image at each position.
            parts: The positions of each batch.
            seeds: int64 (N,) on the CPU, the seed for augmenting the image at each position. None: no augmentation.

        Yields:
            uint8 (n, C, H, W) on the device of `labels`. n may be 0.
        """
        ...


AnyImages = TypeVar("AnyImages", bound=Images)


@dataclass(frozen=True)
class Split:
    """Images in memory, all of one size. It is one of `Images`.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), from 0 to the number of classes - 1.
    """

    images: Tensor
    labels: Tensor
    crops_itself = False

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray | list[int]) -> Self:
        """Convert NumPy arrays: images uint8 (N, C, H, W), copied if they are not contiguous, and labels int64 (N,)."""
        return cls(torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]

    def names(self) -> Sequence[str]:
        """Return no names."""
        return ()

    def take(self, indices: Tensor) -> "Split":
        """Return the images at some indices, int64 (M,)."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """Return the same images on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None = None) -> Generator[Tensor]:
        """Yield the pixels of each part of an order, see `Images`. Seeds are ignored."""
        order = order.to(self.images.device)
        for part in parts:
            yield self.images[order[part]]


@dataclass(frozen=True)
class Dataset:
    """A data set: all of its images, in memory or as files on disk.

    Attributes:
        train: All training images.
        test: All test images.
        classes: Names of the classes by label.
        valid: Validation images, if the data set comes with its own.
        notes: Lines for the user about the files that were found.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    valid: Images | None = None
    notes: tuple[str, ...] = ()

    def sizes(self, *, held_out: int = 0) -> dict[str, int]:
        """Return the numbers of images by "train", "valid" and "test".

        Args:
            held_out: Number of training images that are used for validation.
        """
        valid = len(self.valid or ()) + held_out
        return {"train": len(self.train) - held_out, "valid": valid, "test": len(self.test)}

    def describe(self) -> list[str]:
        """Return two lines for the user: the classes, and the numbers of images."""
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        fewest, most = int(counts.min()), int(counts.max())
        of_each = f"{fewest:,} of each class" if fewest == most else f"{fewest:,} to {most:,} of a class"
        sizes = [f"{len(self.train):,} for training ({of_each})"]
        if self.valid is not None:
            sizes.append(f"{len(self.valid):,} for validation")
        sizes.append(f"{len(self.test):,} for the test")
        return [f"{len(self.classes):,} classes: {listed(self.classes)}", f"Images: {listed(sizes)}"]

    def digest(self) -> int:
        """Return a number of 62 bits that identifies the data set by its classes, labels and names of files.

        The location and the contents of the files make no difference.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for images in (self.train, self.valid, self.test):
            if images is not None:
                digest.update(images.labels.cpu().numpy().tobytes())
                digest.update("\0".join(images.names()).encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest()[:8]) >> 2


def split_validation(train: AnyImages, *, size: int, seed: int) -> tuple[AnyImages, AnyImages]:
    """Hold out images at random, and return the remaining and the held-out ones, both in their old order.

    Args:
        train: All training images.
        size: Number of images to hold out, from 0 to one less than there are.
        seed: The choice is a function of this and the number of images.

    Raises:
        DataError: If no image would remain for training.
    """
    if not 0 <= size < len(train):
        raise DataError(f"--valid_size is {size}, but must be 0 or more and below {len(train):,}, the training images")
    generator = torch.Generator().manual_seed(random.Random(f"validation split, seed {seed}").getrandbits(63))
    order = torch.randperm(len(train), generator=generator)
    return train.take(order[size:].sort().values), train.take(order[:size].sort().values)
