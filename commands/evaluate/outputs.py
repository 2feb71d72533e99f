"""Where the results of an evaluation go: files, and stdout or stderr."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from commands.outputs import print_and_write, require_new
from train.terminal import say, say_error

STDOUT = Path("-")


@dataclass(frozen=True)
class Outputs:
    """New files for the results of an evaluation; None for what is not asked for.

    Attributes:
        plot: A PNG. None: confusion.png in the folder of the run, which is replaced.
        csv: A table of the classes.
        json: All measurements. `STDOUT`: printed there, and lines for the user go to stderr.
        predictions: Logits and labels of all images.
    """

    plot: Path | None
    csv: Path | None
    json: Path | None
    predictions: Path | None

    def require_new(self) -> None:
        """Make sure, before any work is done, that all files can be written.

        Raises:
            UserError: If one exists, cannot be written, or has another ending than its kind.
        """
        require_new(self.plot, flag="plot", suffix=".png")
        require_new(self.csv, flag="csv", suffix=".csv")
        if self.json != STDOUT:
            require_new(self.json, flag="json", suffix=".json")
        require_new(self.predictions, flag="predictions", suffix=".npz")

    @property
    def say(self) -> Callable[..., None]:
        """Prints lines for the user."""
        return say_error if self.json == STDOUT else say

    def deliver(self, lines: list[str], files: Mapping[Path | None, bytes], *, json: str) -> None:
        """Print lines for the user, and write files; print or write the JSON if it is asked for.

        Raises:
            OSError: If stdout cannot be written.
            RunError: If a file exists by now, or cannot be written.
        """
        if self.json == STDOUT:
            self.say(*lines)
            print_and_write(json.split("\n"), files)
        else:
            print_and_write(lines, {**files, self.json: f"{json}\n".encode()})
