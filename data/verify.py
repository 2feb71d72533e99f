"""Read all image files once in advance, so that broken ones are found before training and not days later."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Protocol

from data.errors import DataError, as_one
from data.images import ImageFile, ImageFiles, decode_groups
from data.loader import Loader
from data.splits import Dataset

GROUP_SIZE = 256  # files between two updates of the progress bar


class ProgressBar(Protocol):
    """A progress bar that is on screen."""

    def advance(self, num_items: int, /) -> None:
        """Count items that are done."""
        ...


# Creates a progress bar from its title and the number of items.
MakeBar = Callable[[str, int], AbstractContextManager[ProgressBar]]


def verify_held_out(loaders: Sequence[Loader], *, bar: MakeBar) -> None:
    """Read the validation and test images that are files, this process's part of them.

    Raises:
        DataError: If files cannot be read as images. It names the first ten, and says how many there are.
    """
    splits = [split.take(loader.own_indices()) for loader in loaders if isinstance(split := loader.split, ImageFiles)]
    with closing(_unreadable(splits, "verifying validation and test images", bar)) as errors:
        unreadable = list(errors)
    if unreadable:
        raise as_one(unreadable)


def unreadable_images(dataset: Dataset, *, bar: MakeBar) -> Generator[DataError]:
    """Read all images of a data set that are files, and yield an error for each that cannot be read."""
    splits = [images for images in (dataset.train, dataset.valid, dataset.test) if isinstance(images, ImageFiles)]
    return _unreadable(splits, "reading all images", bar)


def _unreadable(splits: Sequence[ImageFiles], title: str, bar: MakeBar) -> Generator[DataError]:
    paths = [path for images in splits for path in images.paths]
    if not paths:
        return
    starts = range(0, len(paths), GROUP_SIZE)
    groups = ([ImageFile(path) for path in paths[start : start + GROUP_SIZE]] for start in starts)
    decoded = decode_groups(groups, size=splits[0].image_size, channels=splits[0].channels)
    with closing(decoded) as results, bar(title, len(paths)) as shown:
        for group in results:
            shown.advance(len(group))
            yield from (result for result in group if isinstance(result, DataError))
