"""Image files are read before they are needed, so that broken ones are found before training and not days later."""

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial

import torch
from tqdm import tqdm

from data.decode import prepare
from data.errors import DataError, as_one, listed
from data.images import try_to_decode
from data.loader import Loader
from data.source import Images, Source
from data.threads import count_threads, in_order

GROUP = 256  # files between two steps of the bar


def verify_held_out(loaders: Sequence[Loader]) -> None:
    """Read all validation and test images once that are files, this process's part of them.

    A bar is shown on stderr if that is a terminal.

    Raises:
        DataError: If files cannot be read as images. It names the first ten, and says how many there are.
    """
    of_files = [loader for loader in loaders if not loader.split.in_memory]
    is_first = all(loader.share.rank == 0 for loader in of_files)
    title = "a first look at validation and test images"
    with closing(_broken([loader.own_images() for loader in of_files], title=title, is_shown=is_first)) as errors:
        broken = list(errors)
    if broken:
        raise as_one(broken)


def verify_all(source: Source) -> int:
    """Read all images of a data set once that are files, and print a line on stderr for each that cannot be read.

    A bar is shown on stderr if that is a terminal.

    Returns:
        How many cannot be read.
    """
    of_files = [images for images in (source.train, source.valid, source.test) if images and not images.in_memory]
    number = 0
    with closing(_broken(of_files, title="reading all images")) as errors:
        for error in errors:
            tqdm.write(f"error: {error}", file=sys.stderr)
            number += 1
    return number


def describe(source: Source) -> str:
    """Say which classes a data set has, and how many images: a line each."""
    counts = torch.bincount(source.train.labels, minlength=len(source.classes))
    fewest, most = int(counts.min()), int(counts.max())
    of_each = f"{fewest:,} of each class" if fewest == most else f"{fewest:,} to {most:,} of a class"
    sizes = [f"{len(source.train):,} for training ({of_each})"]
    if source.valid is not None:
        sizes.append(f"{len(source.valid):,} for validation")
    sizes.append(f"{len(source.test):,} for the test")
    return f"{len(source.classes):,} classes: {listed(source.classes)}\nImages: {listed(sizes)}"


def _broken(splits: Sequence[Images], *, title: str, is_shown: bool = True) -> Generator[DataError]:
    """Read image files in threads, and yield an error for each that cannot be read."""
    paths = [path for images in splits for path in images.paths]
    if not paths:
        return
    groups = [paths[start : start + GROUP] for start in range(0, len(paths), GROUP)]
    options = {"unit": " images", "leave": False, "dynamic_ncols": True}
    options["disable"] = not (is_shown and sys.stderr.isatty())
    prepare()
    work = partial(try_to_decode, image_size=splits[0].image_size)
    with (
        closing(in_order(work, groups, threads=count_threads())) as results,
        tqdm(desc=title, total=len(paths), **options) as bar,
    ):
        for group in results:
            bar.update(len(group))
            yield from (result for result in group if isinstance(result, DataError))
