"""Image files without labels, prepared as a data set's images are for evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.augment import normalise
from data.crops import middle_crop, shorter_side
from data.decode import decode, prepare
from data.errors import DataError, MissingData
from data.find import find_images
from data.image_files import as_batch
from data.threads import count_threads, in_order


class ImageBatch(NamedTuple):
    """Some files, in the order in which they were asked for.

    Attributes:
        paths: Of the images, n of them.
        images: float32 (n, 3, S, S), normalised. n may be 0.
        errors: One for each file that is no image.
    """

    paths: list[str]
    images: Tensor
    errors: list[DataError]


def list_images(words: Iterable[Path]) -> list[str]:
    """Paths of image files: files as they are named, and in place of a folder the images in it and below, sorted.

    Raises:
        MissingData: If there is no such file or folder, or a folder has no image.
        DataError: If a folder cannot be read, or something is neither file nor folder.
    """
    return [path for word in words for path in _images_at(word)]


def _images_at(word: Path) -> list[str]:
    if word.is_dir():
        images = find_images(word).images
        if not images:
            raise MissingData(f"there is no image in the folder {word}: no file in it ends in .jpg, .png or the like")
        return images
    if not word.exists():
        raise MissingData(f"there is no file {word}")
    if not word.is_file():
        raise DataError(f"{word} is neither a file nor a folder")
    return [str(word)]


def describe_preparation(*, image_size: int, grey: bool) -> dict[str, str | int]:
    """Say in the order of the steps what `read_images` does with a picture, but for the normalisation.

    Args:
        image_size: Height and width S of the images.
        grey: Whether colours are taken away.
    """
    return {
        "turn": "as EXIF says",
        "transparency": "on white",
        "shorter_side": shorter_side(image_size),
        "resize": "bilinear, antialiased",
        "middle_crop": image_size,
        "colours": "grey (0.299 R + 0.587 G + 0.114 B), three times" if grey else "RGB",
    }


def read_images(
    paths: list[str],
    *,
    image_size: int,
    grey: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device,
) -> Iterator[ImageBatch]:
    """Yield batches of image files, decoded in threads a few batches ahead.

    A file that is no image ends nothing: its error is in the batch, in place of its pixels.

    Args:
        paths: Of the files.
        image_size: Height and width S of the images.
        grey: Whether the data set's images are grey, so that colours are taken away.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, likewise.
        batch_size: Files of a batch, 1 or more.
        device: Where the batches are wanted.
    """
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    groups = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    work = partial(try_to_decode, image_size=image_size, grey=grey)
    prepare()
    with closing(in_order(work, groups, threads=count_threads())) as batches:
        for group, results in zip(groups, batches, strict=True):
            good = [
                (path, pixels) for path, pixels in zip(group, results, strict=True) if isinstance(pixels, np.ndarray)
            ]
            images = as_batch([pixels for _, pixels in good], size=image_size, device=device)
            errors = [error for error in results if isinstance(error, DataError)]
            yield ImageBatch([path for path, _ in good], normalise(images, mean, std), errors)


def try_to_decode(path: str, *, image_size: int, grey: bool = False) -> np.ndarray | DataError:
    """Decode a file as it is for evaluation, or return the error in place of its pixels."""
    try:
        return decode(path, partial(middle_crop, size=image_size), size=image_size, grey=grey)
    except DataError as error:
        return error
