"""A first look at image files, so that a broken one is found before training begins and not days later."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from data.loader import Loader


def look_at_files(loaders: Sequence[Loader]) -> None:
    """Read all images that are files once, this process's part of them; those in memory have been read.

    A bar is shown on stderr if that is a terminal.

    Raises:
        DataError: If a file cannot be read as an image.
    """
    of_files = [loader for loader in loaders if not loader.split.in_memory]
    total = sum(loader.num_images for loader in of_files)
    is_shown = total and sys.stderr.isatty() and of_files[0].share.rank == 0
    options = {"unit": " images", "leave": False, "dynamic_ncols": True, "disable": not is_shown}
    with tqdm(desc="a first look at validation and test images", total=total, **options) as bar:
        for loader in of_files:
            for _, _, size in loader:
                bar.update(size)
