"""`demo.py compare`: its flags and help."""

from pathlib import Path

from commands.compare.comparison import compare_runs
from commands.compare.table import Format
from commands.line.flags import Command, Role, Settings, flag, settings, words
from commands.outputs import require_new
from commands.settings import DEBUG_HELP, TrainSettings


@settings
class CompareSettings(Settings):
    """Flags of the command compare."""

    runs: tuple[Path, ...] = words("Folders of runs. One that is not a run stands for all runs in it.")
    format: Format = flag(
        'How the tables are printed: "text" for reading, "markdown" or "latex" for a page or a paper, "json" for '
        "programs, with all flags.",
        default="text",
    )
    plot: Path | None = flag(
        "Also draw training loss, error and learning rate of all runs into this new file, a PNG. Runs that differ in "
        "the seed alone are one line, their mean, in a band of one standard deviation to both sides.",
        default=None,
    )
    csv: Path | None = flag("Also write the table to this new file, a line for each run.", default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def compare(settings: CompareSettings) -> None:
    """Print runs side by side: epochs done, errors, speed, and the flags that differ.

    Finished runs that differ in the seed alone also get mean and standard deviation (n - 1) of their errors.

    Runs may be unfinished, or going on. Nothing is written into them. A folder that cannot be read as a run gets a line
    on stderr, the others are compared, and the exit code is then 1.
    """
    require_new(settings.plot, flag="plot", suffix=".png")
    require_new(settings.csv, flag="csv", suffix=".csv")
    compare_runs(
        settings.runs,
        not_compared=TrainSettings.names(Role.NOT_COMPARED),
        form=settings.format,
        plot=settings.plot,
        csv=settings.csv,
    )


COMMAND = Command(CompareSettings, compare)
