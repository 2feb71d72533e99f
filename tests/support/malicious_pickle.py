"""An object that runs code when a careless program unpickles it."""

import os
from pathlib import Path


class Hostile:
    """Creates a folder when it is unpickled.

    Args:
        marker: The folder.
    """

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
