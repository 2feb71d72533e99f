"""Events of a run for TensorBoard: the rows of results.csv as scalars.

The package tensorboard is needed to write them. It is imported, which takes a second, when the first event is written.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from train.errors import RunError, UserError
from train.run.history import Row
from train.run.open_folder import OpenFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SUFFIX = ".densenet"
# Earlier versions put no machine and process into the name, and left .tmp files where they were killed.
OURS = re.compile(r"\.?events\.out\.tfevents\.[0-9]+\.(.+\.)?densenet(\.([0-9a-f-]+\.)?tmp)?")
TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/validation",
    "ema_valid_loss": "loss/validation_ema",
    "train_error": "error/train",
    "valid_error": "error/validation",
    "ema_valid_error": "error/validation_ema",
    "learning_rate": "learning_rate",
    "images_per_second": "speed/images_per_second",
    "peak_memory_mb": "memory/peak_mb",
    "test_error": "error/test",
}


class Scalar(NamedTuple):
    """A value of an epoch.

    Attributes:
        tag: TensorBoard's name for its curve.
        epoch: The epoch, counted from 1.
        value: The value; errors are fractions.
        age: Seconds of training since the end of the epoch, so that TensorBoard's relative time is time of training.
    """

    tag: str
    epoch: int
    value: float
    age: float


def scalars(rows: Sequence[Row]) -> list[Scalar]:
    """Return all values of some epochs. Further rows, and the test error, only add values at the end."""
    ages = [0.0]
    for row in reversed(rows[1:]):
        ages.append(ages[-1] + row.seconds)
    return [
        Scalar(tag, row.epoch, getattr(row, name), age)
        for row, age in zip(rows, reversed(ages), strict=False)
        for name, tag in TAGS.items()
        if getattr(row, name) is not None
    ]


class Events:
    """The events of a run, in one file that each process begins anew and that grows with the rows.

    A new file, instead of more events in the old one, shows the same epochs as results.csv wherever the earlier process
    was killed. Its first event, the purge step, makes TensorBoard drop the events of earlier files, should this process
    be killed before it has removed them.

    Args:
        directory: The folder of the run. A folder for the events is created in it with the first file. Files of other
            programs in there are left alone.
        name: The folder of the events.

    Raises:
        UserError: If something that is not a folder has its name.
    """

    def __init__(self, directory: OpenFolder, name: str = FOLDER):
        self.directory = directory
        self.name = name
        self.folder = directory.path / name
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--tensorboard is True, but {self.folder} is not a folder")
        self._writer: SummaryWriter | None = None
        self._file = ""
        self._num_written = 0  # scalars
        if not isinstance(threading.excepthook, QuietHook):
            threading.excepthook = QuietHook(threading.excepthook)

    def write(self, rows: Sequence[Row]) -> None:
        """Bring the events up to date with the rows of the run, which begin with those of the last call.

        Raises:
            RunError: If the system refuses, or the folder of the run is no longer ours.
        """
        known = scalars(rows)
        try:
            with self.directory.subfolder(self.name) as folder:
                if self._writer is not None and (self.folder / self._file).exists():
                    self._add(self._writer, known[self._num_written :])
                else:
                    self._begin(folder, known)
        except OSError as error:
            self._writer = None
            raise RunError(f"cannot write events into {self.folder}: {error.strerror or error}") from error
        self._num_written = len(known)

    def _begin(self, folder: OpenFolder, known: Sequence[Scalar]) -> None:
        """Write all events into a new file, and then remove those of earlier processes."""
        from torch.utils.tensorboard import SummaryWriter

        earlier = self._own_files()
        self._writer = SummaryWriter(str(self.folder), purge_step=1, filename_suffix=SUFFIX)
        self._file = next(iter(self._own_files() - earlier), "")
        self._add(self._writer, known)
        for name in earlier:
            folder.discard(name)

    def _own_files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if OURS.fullmatch(path.name) and path.is_file()}

    def _add(self, writer: "SummaryWriter", added: Sequence[Scalar]) -> None:
        """Write events, and wait until they are in the file."""
        now = time.time()
        for scalar in added:
            writer.add_scalar(scalar.tag, scalar.value, scalar.epoch, walltime=now - scalar.age)
        writer.flush()


class QuietHook:
    """A `threading.excepthook` that prints nothing for TensorBoard's threads, whose errors `flush` raises again.

    Args:
        others: The hook for all other threads.
    """

    def __init__(self, others: Callable[[threading.ExceptHookArgs], object]):
        self.others = others

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        """Handle an exception that has ended a thread."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self.others(arguments)
