"""`demo.py evaluate`: its flags and help."""

from pathlib import Path

from commands.evaluate.outputs import Outputs
from commands.line.flags import Command, flag, settings
from commands.run_record import read_record
from commands.saved_run import SavedRun
from commands.settings import DATA_URL_HELP, DEBUG_HELP, DOWNLOAD_HELP, THREADS_HELP, BatchSize, DataUrl, Threads
from commands.trained import TrainedSettings, read_trained
from train.errors import UserError


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
    calibrate: bool = flag(
        "Fit a temperature for the logits on the validation images of the run, and keep it in calibration.json of the "
        "run, where predict and export find it. Predictions stay the same, and their probabilities change.",
        default=False,
    )
    plot: Path | None = flag(
        "Draw confusion matrix and reliability diagram into this new file, a PNG. None: into confusion.png of the run, "
        "which is replaced; with --weights, no plot.",
        default=None,
    )
    csv: Path | None = flag(
        "Also write a table of the classes to this new file, with the confusion matrix.", default=None
    )
    json: Path | None = flag(
        "Also write all measurements to this new file, as JSON. -: to stdout, and everything else to stderr.",
        default=None,
    )
    predictions: Path | None = flag(
        "Also write logits and labels of all test images to this new .npz file of NumPy arrays.", default=None
    )
    debug: bool = flag(DEBUG_HELP, default=False)


def evaluate(settings: EvaluateSettings) -> None:
    """Measure the chosen weights of a run on its test images: errors, confusions between classes, and calibration.

    Network, data set and normalisation are those of the run's config.json. A run that is not finished is measured at
    its last finished epoch. In place of a run, --weights names a file of weights and --dataset the data set that they
    were trained on. The calibration error is the expected one of Guo et al., 2017, with 15 bins of equal width: the
    average difference between the probability of the predicted class and how often it is right. Nothing in the folder
    of the run changes except for the plot confusion.png and, with --calibrate, calibration.json.
    """
    outputs = Outputs(settings.plot, settings.csv, settings.json, settings.predictions)
    outputs.require_new()
    if settings.calibrate and settings.weights:
        raise UserError("--calibrate True needs the validation images of a run, which --weights does not have")
    run = read_trained(settings, reads_data=True)
    if isinstance(run, SavedRun):
        read_record(run.path)  # a damaged record is refused before torch is imported
    if settings.calibrate and run.settings.valid_size == 0:
        raise UserError(
            f"--calibrate True needs validation images, but the run in {settings.save} held out none: it had "
            "--valid_size 0"
        )
    from commands.evaluate.evaluation import evaluate_run  # torch takes seconds to import

    evaluate_run(
        run,
        outputs,
        data=settings.data,
        batch_size=settings.batch_size,
        threads=settings.threads,
        download=settings.download,
        data_url=settings.data_url,
        calibrate=settings.calibrate,
    )


COMMAND = Command(EvaluateSettings, evaluate)
