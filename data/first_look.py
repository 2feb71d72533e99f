"""A first look at image files, so that a broken one is found before training begins and not days later."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from data.loader import Loader


def look_at_files(loaders: Sequence[Loader], *, bar: Callable[[str, int], AbstractContextManager[Any]]) -> None:
    """Read all images that are files once, this process's part of them; those in memory have been read.

    Args:
        loaders: What to read.
        bar: Makes a progress bar from a name and a number of images. It has a method `advance` that counts some.

    Raises:
        DataError: If a file cannot be read as an image.
    """
    of_files = [loader for loader in loaders if not loader.split.in_memory]
    if not of_files:
        return
    with bar("a first look at validation and test images", sum(loader.num_images for loader in of_files)) as shown:
        for loader in of_files:
            for _, _, size in loader:
                shown.advance(size)
