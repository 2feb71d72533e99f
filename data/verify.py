"""Image files are read before they are needed, so that broken ones are found before training and not days later."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import torch

from data.decode import prepare
from data.errors import DataError, as_one, listed
from data.images import try_to_decode
from data.loader import Loader
from data.source import Images, Source
from data.threads import count_threads, in_order

GROUP = 256  # files between two steps of the bar


# Makes a progress bar from a name and a number of images. It has a method `advance` that counts some.
MakeBar = Callable[[str, int], AbstractContextManager[Any]]


def verify_held_out(loaders: Sequence[Loader], *, bar: MakeBar) -> None:
    """Read all validation and test images once that are files, this process's part of them.

    Raises:
        DataError: If files cannot be read as images. It names the first ten, and says how many there are.
    """
    of_files = [loader.own_images() for loader in loaders if not loader.split.in_memory]
    with closing(_unreadable(of_files, "a first look at validation and test images", bar)) as errors:
        unreadable = list(errors)
    if unreadable:
        raise as_one(unreadable)


def unreadable_images(source: Source, *, bar: MakeBar) -> Generator[DataError]:
    """Read all images of a data set once that are files, and yield an error for each that cannot be read."""
    every = (source.train, source.valid, source.test)
    of_files = [images for images in every if images is not None and not images.in_memory]
    return _unreadable(of_files, "reading all images", bar)


def describe(source: Source) -> list[str]:
    """Say which classes a data set has, and how many images: a line each."""
    counts = torch.bincount(source.train.labels, minlength=len(source.classes))
    fewest, most = int(counts.min()), int(counts.max())
    of_each = f"{fewest:,} of each class" if fewest == most else f"{fewest:,} to {most:,} of a class"
    sizes = [f"{len(source.train):,} for training ({of_each})"]
    if source.valid is not None:
        sizes.append(f"{len(source.valid):,} for validation")
    sizes.append(f"{len(source.test):,} for the test")
    return [f"{len(source.classes):,} classes: {listed(source.classes)}", f"Images: {listed(sizes)}"]


def _unreadable(splits: Sequence[Images], title: str, bar: MakeBar) -> Generator[DataError]:
    """Read image files in threads, and yield an error for each that cannot be read."""
    paths = [path for images in splits for path in images.paths]
    if not paths:
        return
    groups = [paths[start : start + GROUP] for start in range(0, len(paths), GROUP)]
    prepare()
    work = partial(try_to_decode, image_size=splits[0].image_size)
    with closing(in_order(work, groups, threads=count_threads())) as results, bar(title, len(paths)) as shown:
        for group in results:
            shown.advance(len(group))
            yield from (result for result in group if isinstance(result, DataError))
