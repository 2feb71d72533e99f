"""The command `densenets`, also `python -m densenets`: what demo.py does in a checkout."""

import runpy
import sys
from pathlib import Path

from densenets import __path__ as folders


def main() -> None:
    """Run the words of the command line.

    The parts of the program import each other by short names, such as `data`. These are found in this process alone.
    """
    folder = Path(folders[-1])
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "demo.py"), run_name="__main__")


if __name__ == "__main__":
    main()
