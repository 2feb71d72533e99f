"""Compare the records of several runs: a table on stdout, and on request a plot and the table in new files."""

from collections.abc import Collection, Sequence
from pathlib import Path

from commands.compare.table import Format, RunsTable
from commands.outputs import print_and_write
from commands.run_record import read_records
from train.errors import RunError
from train.terminal import warn


def compare_runs(
    folders: Sequence[Path],
    *,
    not_compared: Collection[str],
    form: Format = "text",
    plot: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Print a table of runs, and write it and a plot to new files. Nothing is written into the runs.

    Args:
        folders: Folders of runs. A folder that is not a run stands for all runs in it, see `read_records`.
        not_compared: Flags that get no line of their own if they differ, see `compared_flags`.
        form: The form in which the table is printed.
        plot: New PNG file for a plot of all runs. None: no plot.
        csv: New CSV file for the table. None: no such file.

    Raises:
        UserError: If no run can be read, a run is named twice, or there are too many runs for a plot.
        RunError: If some of the folders could not be read as runs; the others are compared before that.
    """
    runs, errors = read_records(folders)
    table = RunsTable(runs, not_compared)
    files: dict[Path | None, bytes] = {}
    if csv:
        files[csv] = table.as_csv()
    if plot:
        from commands.compare.plot import draw_runs  # matplotlib takes a second to import

        files[plot] = draw_runs(runs, table.groups)
    print_and_write(table.as_lines(form), files)
    for run in (run for group in table.groups for run in group.repeated):
        warn(f"{run.path} has flags and seed of another run, and is not counted in mean and standard deviation")
    if errors:
        for error in errors:
            warn(str(error))
        raise RunError(f"{len(errors)} of {len(runs) + len(errors)} folders could not be read as runs")
