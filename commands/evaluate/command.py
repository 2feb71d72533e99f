"""`demo.py evaluate`: its flags and help."""

from pathlib import Path

from commands.line.flags import Command, flag, settings
from commands.outputs import require_new
from commands.run_record import read_record
from commands.settings import DATA_URL_HELP, DEBUG_HELP, DOWNLOAD_HELP, THREADS_HELP, BatchSize, DataUrl, Threads
from commands.trained import TrainedSettings, read_trained


@settings
class EvaluateSettings(TrainedSettings):
    """Flags of the command evaluate."""

    data: Path | None = flag("Folder of the data set. None: that of the run.", default=None)
    batch_size: BatchSize = flag(
        "Images in a batch. Another number changes memory and speed, and results by rounding only.", default=256
    )
    threads: Threads | None = flag(f"{THREADS_HELP} Another number changes results by rounding only.", default=None)
    download: bool = flag(DOWNLOAD_HELP, default=True)
    data_url: DataUrl | None = flag(f"{DATA_URL_HELP} None: those of the run.", default=None)
    plot: Path | None = flag(
        "Draw the confusion matrix into this new file, a PNG. None: into confusion.png of the run, which is replaced; "
        "with --weights, no plot.",
        default=None,
    )
    csv: Path | None = flag(
        "Also write a table of the classes to this new file, with the confusion matrix.", default=None
    )
    debug: bool = flag(DEBUG_HELP, default=False)


def evaluate(settings: EvaluateSettings) -> None:
    """Measure the chosen weights of a run on its test images: accuracy of each class, and confusions between classes.

    Network, data set and normalisation are those of the run's config.json. A run that is not finished is measured at
    its last finished epoch. Nothing in its folder changes except for the plot confusion.png. In place of a run,
    --weights names a file of weights and --dataset the data set that they were trained on.
    """
    require_new(settings.plot, flag="plot", suffix=".png")
    require_new(settings.csv, flag="csv", suffix=".csv")
    run = read_trained(settings, reads_data=True)
    if settings.save:
        read_record(settings.save)  # a damaged record is refused before torch is imported
    from commands.evaluate.evaluation import evaluate_run  # torch takes seconds to import

    evaluate_run(
        run,
        data=settings.data,
        batch_size=settings.batch_size,
        threads=settings.threads,
        download=settings.download,
        data_url=settings.data_url,
        plot=settings.plot,
        csv=settings.csv,
    )


COMMAND = Command(EvaluateSettings, evaluate)
