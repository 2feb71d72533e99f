"""What runs a program when a careless program loads it."""

import os
from pathlib import Path


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
