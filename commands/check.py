"""`demo.py check`: read all images of a data set."""

from pathlib import Path

from commands.line.flags import Command, Settings, flag, settings
from commands.memory import larger_machine, memory_explained
from commands.settings import (
    CHANNELS_HELP,
    DATA_URL_HELP,
    DEBUG_HELP,
    DOWNLOAD_HELP,
    Channels,
    DatasetName,
    DataUrl,
)
from train.byte_bar import ByteBar
from train.errors import RunError
from train.terminal import Bar, say, say_error


@settings
class CheckSettings(Settings):
    """Flags of the command check."""

    data: Path | None = flag("Folder of the data set, as in train.", default=None)
    dataset: DatasetName = flag("Data set, as in train.", default="cifar10")
    in_channels: Channels = flag(CHANNELS_HELP, default=3)
    download: bool = flag(DOWNLOAD_HELP, default=True)
    data_url: DataUrl | None = flag(DATA_URL_HELP, default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def check(settings: CheckSettings) -> None:
    """Read all images of a data set, and print its classes and the files that cannot be read.

    In a "folder", every training, validation and test image is decoded; for CIFAR and SVHN, the md5 digest of every
    file is verified. A file that cannot be read gets a line on stderr, and the exit code is then 1.
    """
    from data.datasets import load
    from data.verify import unreadable_images

    with memory_explained(larger_machine):
        source = load(
            settings.dataset,
            folder=settings.data,
            download=settings.download,
            channels=settings.in_channels,
            mirrors=settings.data_url,
            notify=say,
            bar=ByteBar,
        )
        say(*source.notes, *source.describe())
        broken, every = 0, sum(source.sizes().values())
        for error in unreadable_images(source, bar=Bar):
            say_error(f"error: {error}")
            broken += 1
    if broken:
        raise RunError(f"{broken:,} of {every:,} images cannot be read")
    say(f"All {every:,} images can be read.")


COMMAND = Command(CheckSettings, check)
