"""Labelled image files, decoded batch by batch in threads and never all in memory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.crops import SMALL, middle_crop, random_crop
from data.decode import decode, prepare
from data.errors import DataError, as_one
from data.threads import count_threads, in_order


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels.

    Attributes:
        paths: Of the files.
        labels: int64 (N,), from 0 to the number of classes - 1, on the device where batches are wanted.
        image_size: Height and width S of the batches.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int
    in_memory = False

    def __len__(self) -> int:
        return len(self.paths)

    def names(self) -> Sequence[str]:
        """Paths below the folder that all of them have in common."""
        common = os.path.commonpath(self.paths) if self.paths else ""
        return [path[len(common) :] for path in self.paths]

    @property
    def crops_itself(self) -> bool:
        """Whether random crops are cut out of the pictures; small images are augmented like those of CIFAR."""
        return self.image_size > SMALL

    def take(self, indices: Tensor) -> "ImageFiles":
        """The images at some indices (M,)."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return ImageFiles(paths, self.labels[indices], self.image_size)

    def to(self, device: torch.device) -> "ImageFiles":
        """The same images, for batches on a device."""
        return ImageFiles(self.paths, self.labels.to(device), self.image_size)

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the pixels of each part, see `data.source.Images`.

        Raises:
            DataError: If files cannot be read as images. It names those of the same batch.
        """
        prepare()
        groups = (self._items(order[part], None if seeds is None else seeds[part]) for part in parts)
        with closing(in_order(self._decode, groups, threads=count_threads())) as batches:
            for pixels in batches:
                broken = [error for error in pixels if isinstance(error, DataError)]
                if broken:
                    raise as_one(broken)
                yield as_batch(pixels, size=self.image_size, device=self.labels.device)

    def _items(self, order: Tensor, seeds: Tensor | None) -> list[tuple[str, int | None]]:
        """Path and seed of each image."""
        paths = [self.paths[index] for index in order.tolist()]
        return list(zip(paths, [None] * len(paths) if seeds is None else seeds.tolist(), strict=True))

    def _decode(self, item: tuple[str, int | None]) -> np.ndarray | DataError:
        path, seed = item
        choose = partial(middle_crop, size=self.image_size) if seed is None else partial(random_crop, seed=seed)
        try:
            return decode(path, choose, size=self.image_size)
        except DataError as error:
            return error


def as_batch(pixels: list[np.ndarray], *, size: int, device: torch.device) -> Tensor:
    """Put images of uint8 (S, S, 3) together as a batch (n, 3, S, S) on a device, in the order `channels_last`.

    The device copies it while this process goes on. n may be 0.
    """
    images = torch.from_numpy(np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8))
    if device.type != "cpu":
        images = images.pin_memory().to(device, non_blocking=True)
    return images.permute(0, 3, 1, 2)
