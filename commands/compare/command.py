"""`demo.py compare`: its flags, help and work."""

from pathlib import Path

from commands.compare.table import RunsTable
from commands.line.flags import Command, Settings, flag, settings, words
from commands.outputs import print_and_write, require_new
from commands.run_history import read_logbooks
from commands.settings import DEBUG_HELP
from train.errors import RunError
from train.terminal import warn


@settings
class CompareSettings(Settings):
    """Settings of the command."""

    runs: tuple[Path, ...] = words("Folders of runs. One that is no run itself stands for all runs directly below it.")
    plot: Path | None = flag(
        "Also draw training loss, error and learning rate of all runs into this new file, a PNG.", default=None
    )
    csv: Path | None = flag("Also write the table to this new file, a line for each run.", default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def compare(settings: CompareSettings) -> None:
    """Print runs side by side: epochs done, errors, speed, and the flags that differ.

    Runs may be unfinished, or going on. Nothing is written into them. A folder that cannot be read as a run gets a line
    on stderr, the others are compared, and the exit code is then 1.
    """
    plot, csv = settings.plot, settings.csv
    require_new(plot, flag="plot", suffix=".png")
    require_new(csv, flag="csv", suffix=".csv")
    books, errors = read_logbooks(settings.runs)
    table = RunsTable(books)
    files: dict[Path | None, bytes] = {}
    if csv:
        files[csv] = table.as_csv()
    if plot:
        from commands.compare.plot import draw_runs  # matplotlib takes a second to import

        files[plot] = draw_runs(books)
    print_and_write(table.as_text().split("\n"), files)
    for error in errors:
        warn(str(error))
    if errors:
        raise RunError(f"{len(errors)} of {len(books) + len(errors)} folders could not be read as runs")


COMMAND = Command(CompareSettings, compare)
