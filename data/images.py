"""Image files, with or without labels: decoded in threads a few batches ahead, and never all in memory."""

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.arrays import decode_array, is_array
from data.augment import normalise
from data.crops import SMALL, middle_crop, random_crop, shorter_side
from data.decode import COLOURS, decode, prepare
from data.errors import DataError, MissingData, as_one
from data.threads import count_threads, in_order
from data.walk import find_images


class ImageFile(NamedTuple):
    """An image file to decode.

    Attributes:
        path: Path of the file.
        seed: Seed of a random crop for training. None: the middle crop for evaluation.
    """

    path: str
    seed: int | None = None


def decode_groups(
    groups: Iterable[Sequence[ImageFile]], *, size: int, channels: int, grey: bool = False
) -> Generator[list[np.ndarray | DataError]]:
    """Decode files in threads. Yield the pixels (S, S, channels) of each, or its error, group by group.

    Args:
        groups: Files whose results are yielded together.
        size: Height and width S of the images.
        channels: Their channels: 1 or 3 for image files, those that it has for each .npy file.
        grey: Whether to remove colours from image files.
    """
    prepare()
    work = partial(_try_to_decode, size=size, channels=channels, grey=grey)
    return in_order(work, groups, threads=count_threads())


def _try_to_decode(file: ImageFile, *, size: int, channels: int, grey: bool) -> np.ndarray | DataError:
    choose = partial(middle_crop, size=size) if file.seed is None else partial(random_crop, seed=file.seed)
    try:
        if is_array(file.path):
            return decode_array(file.path, choose, size=size, channels=channels)
        return decode(file.path, choose, size=size, channels=channels, grey=grey)
    except DataError as error:
        return error


def _separate(results: list[np.ndarray | DataError]) -> tuple[list[np.ndarray], list[DataError]]:
    """Separate pixels from errors, each in their order."""
    pixels = [result for result in results if not isinstance(result, DataError)]
    return pixels, [result for result in results if isinstance(result, DataError)]


def as_batch(pixels: list[np.ndarray], *, size: int, channels: int, device: torch.device) -> Tensor:
    """Stack n images of uint8 (S, S, C) to a batch (n, C, S, S) on a device, in memory format `channels_last`.

    The copy to the device is asynchronous. n may be 0.
    """
    images = torch.from_numpy(np.stack(pixels) if pixels else np.empty((0, size, size, channels), np.uint8))
    if device.type != "cpu":
        images = images.pin_memory().to(device, non_blocking=True)
    return images.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels. It is one of `data.splits.Images`.

    Attributes:
        paths: Paths of the N files.
        labels: int64 (N,), from 0 to the number of classes - 1, on the device of the batches.
        image_size: Height and width S of the batches.
        channels: Channels of the batches.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def names(self) -> Sequence[str]:
        """Return the paths relative to the folder that all of them have in common."""
        common = os.path.commonpath(self.paths) if self.paths else ""
        return [path[len(common) :] for path in self.paths]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_size

    @property
    def crops_itself(self) -> bool:
        """Whether files are cropped at random as they are decoded. Small images are augmented as in CIFAR."""
        return self.image_size > SMALL

    @property
    def are_arrays(self) -> bool:
        """Whether they are .npy files; a data set has no image files beside them."""
        return bool(self.paths) and is_array(self.paths[0])

    def take(self, indices: Tensor) -> "ImageFiles":
        """Return the images at some indices, int64 (M,)."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def to(self, device: torch.device) -> "ImageFiles":
        """Return the same images, for batches on a device."""
        return replace(self, labels=self.labels.to(device))

    def read(self, order: Tensor, parts: Sequence[slice], seeds: Tensor | None = None) -> Generator[Tensor]:
        """Yield the pixels of each part of an order, see `data.splits.Images`.

        Raises:
            DataError: If files cannot be read as images. It names all of them in the same batch.
        """
        groups = (self._files(order[part], None if seeds is None else seeds[part]) for part in parts)
        with closing(decode_groups(groups, size=self.image_size, channels=self.channels)) as batches:
            for results in batches:
                pixels, errors = _separate(results)
                if errors:
                    raise as_one(errors)
                yield as_batch(pixels, size=self.image_size, channels=self.channels, device=self.labels.device)

    def _files(self, order: Tensor, seeds: Tensor | None) -> list[ImageFile]:
        every_seed = [None] * len(order) if seeds is None else seeds.tolist()
        return [ImageFile(self.paths[index], seed) for index, seed in zip(order.tolist(), every_seed, strict=True)]


class ImageBatch(NamedTuple):
    """A batch of files, in the order in which they were asked for.

    Attributes:
        paths: Paths of the n images.
        images: float32 (n, C, S, S), normalised. n may be 0.
        errors: An error for each file that cannot be read as an image.
    """

    paths: list[str]
    images: Tensor
    errors: list[DataError]


def list_images(paths: Iterable[Path]) -> list[str]:
    """Replace each folder by the image files in it and in the folders below, sorted. Files stay as they are named.

    A folder without image files is replaced by its .npy files.

    Raises:
        MissingData: If a file or folder does not exist, or a folder has no image.
        DataError: If a folder cannot be read, or something is neither file nor folder.
    """
    return [image for path in paths for image in _images_at(path)]


def _images_at(path: Path) -> list[str]:
    if path.is_dir():
        images = find_images(path).images or find_images(path, arrays=True).images
        if not images:
            raise MissingData(f"there is no image in the folder {path}: no file in it ends in .jpg, .png or the like")
        return images
    if not path.exists():
        raise MissingData(f"there is no file {path}")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    return [str(path)]


def describe_preparation(*, image_size: int, channels: int = 3, grey: bool) -> dict[str, str | int]:
    """Describe the steps of `read_images` before normalisation, in their order.

    Args:
        image_size: Height and width S of the images.
        channels: Channels of the images.
        grey: Whether colours are removed.
    """
    luma = "grey (0.299 R + 0.587 G + 0.114 B)"
    colours = {1: luma, 3: f"{luma}, three times" if grey else COLOURS[3]}
    return {
        "turn": "as EXIF says",
        "transparency": "on white",
        "shorter_side": shorter_side(image_size),
        "resize": "bilinear, antialiased",
        "middle_crop": image_size,
        "colours": colours.get(channels, f"{channels} channels, as they are"),
    }


def read_images(
    paths: list[str],
    *,
    image_size: int,
    channels: int = 3,
    grey: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device,
) -> Generator[ImageBatch]:
    """Yield batches of image files without labels, prepared as images of a data set are for evaluation.

    A file that cannot be read does not end the iteration: its batch has an error in place of its pixels.

    Args:
        paths: Paths of the files.
        image_size: Height and width S of the images.
        channels: Channels of the images.
        grey: Whether to remove colours, as the data set has none.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        batch_size: Files in a batch, 1 or more.
        device: Device of the batches.
    """
    means, stds = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    groups = ([ImageFile(path) for path in chunk] for chunk in chunks)
    with closing(decode_groups(groups, size=image_size, channels=channels, grey=grey)) as batches:
        for chunk, results in zip(chunks, batches, strict=True):
            pixels, errors = _separate(results)
            good = [path for path, result in zip(chunk, results, strict=True) if not isinstance(result, DataError)]
            images = as_batch(pixels, size=image_size, channels=channels, device=device)
            yield ImageBatch(good, normalise(images, means, stds), errors)
