"""`demo.py predict`: its flags and help."""

from pathlib import Path
from typing import Annotated

from commands.line.flags import Command, flag, settings, words
from commands.line.types import Range
from commands.outputs import require_new
from commands.settings import DEBUG_HELP, THREADS_HELP, BatchSize, Threads
from commands.trained import TrainedSettings, read_trained
from train.errors import UserError


@settings
class PredictSettings(TrainedSettings):
    """Flags of the command predict."""

    images: tuple[Path, ...] = words("Image files, or folders of them.")
    top: Annotated[int, Range(1)] = flag("Classes to print for each image, the most probable first.", default=1)
    batch_size: BatchSize = flag("Images that go through the network together.", default=256)
    threads: Threads | None = flag(THREADS_HELP, default=None)
    csv: Path | None = flag("Also write file, classes and probabilities to this new file.", default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def predict(settings: PredictSettings) -> None:
    """Print the class of each image, by the weights of a finished or unfinished run, or by a file of weights.

    Any image file that Pillow can read will do, and any array in a .npy file with the channels of the run: it is
    resized and cropped in the same way as the test images of the run. A line is printed for each file, with its path,
    its class and the probability that the network gives to it. A file that is no image, or has other channels, gets a
    line on stderr, and the exit code is then 1. If "evaluate --calibrate True" has left a temperature for these weights
    in the folder of the run, probabilities are those at this temperature, and a line on stderr says so.
    """
    require_new(settings.csv, flag="csv", suffix=".csv")
    run = read_trained(settings)
    if settings.top > len(run.classes):
        raise UserError(f"--top is {settings.top}, but the network has {len(run.classes)} classes")
    from commands.predict.predictions import predict_images  # torch takes seconds to import

    predict_images(
        run,
        settings.images,
        top=settings.top,
        batch_size=settings.batch_size,
        threads=settings.threads,
        csv=settings.csv,
    )


COMMAND = Command(PredictSettings, predict)
