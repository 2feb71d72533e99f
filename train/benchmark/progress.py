"""How far a measurement is, on a terminal only."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """Go through items and show a bar on stderr if that is a terminal."""
    return iter(tqdm(items, what, total, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()))
