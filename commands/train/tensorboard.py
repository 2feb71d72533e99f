"""TensorBoard's events of a run, a copy of the rows of results.csv.

The package tensorboard is needed to write them, and imported here only once it is. Its parts for a single event and
a single record are used instead of a SummaryWriter: that one writes in a thread of its own, where a full disk is no
error that the run could report.
"""

import importlib.util
import io
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from train.errors import RunError, UserError
from train.run.history import Row
from train.run.open_folder import OpenFolder

FOLDER = "tensorboard"
OURS = re.compile(r"\.?events\.out\.tfevents\.[0-9]+\.densenet(\.([0-9a-f-]+\.)?tmp)?")  # the last are of killed runs
TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/validation",
    "train_error": "error/train",
    "valid_error": "error/validation",
    "learning_rate": "learning_rate",
    "images_per_second": "speed/images_per_second",
    "peak_memory_mb": "memory/peak_mb",
    "test_error": "error/test",
}


def require_tensorboard(wanted: bool) -> None:
    """Make sure that events can be written, if they are wanted.

    Raises:
        UserError: If not.
    """
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard is True, but the package tensorboard is missing: pip install tensorboard")


class Scalar(NamedTuple):
    """A number of an epoch.

    Attributes:
        tag: TensorBoard's name for its curve.
        epoch: From 1.
        value: Errors are fractions.
        age: Seconds of training since then, so that TensorBoard's relative time is time of training.
    """

    tag: str
    epoch: int
    value: float
    age: float


def scalars(rows: Sequence[Row]) -> list[Scalar]:
    """All numbers of some epochs. What a further row, or the test error at the end, adds stands behind them."""
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
    """The events of a run, in a file that is begun anew by each process and then grows with the rows.

    Args:
        run: The folder of the run. That of the events is made in it with the first file. Files of others in there are
            left alone.
        name: Of the folder of the events.

    Raises:
        UserError: If there is something else in its place.
    """

    def __init__(self, run: OpenFolder, name: str = FOLDER):
        self.run = run
        self.name = name
        self.folder = run.path / name
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--tensorboard is True, but {self.folder} is not a folder")
        self.file = ""
        self.written = 0  # scalars

    def write(self, rows: Sequence[Row]) -> None:
        """Bring the events up to some rows, which begin with those of the last call.

        Raises:
            RunError: If the system refuses, or the folder of the run is not ours any more.
        """
        known = scalars(rows)
        try:
            with self.run.subfolder(self.name) as folder:
                if self.file and (self.folder / self.file).exists():
                    folder.append(self.file, _as_records(known[self.written :], with_header=False))
                else:
                    self._begin(folder, known)
        except OSError as error:
            raise RunError(f"cannot write events into {self.folder}: {error.strerror or error}") from error
        self.written = len(known)

    def _begin(self, folder: OpenFolder, known: Sequence[Scalar]) -> None:
        """Write a file with all of them, and then remove those of earlier processes."""
        earlier = [path.name for path in self.folder.iterdir() if OURS.fullmatch(path.name) and path.is_file()]
        # A name of its own, later than the others: a TensorBoard that is watching goes on to it.
        self.file = f"events.out.tfevents.{time.time_ns()}.densenet"
        folder.write(self.file, lambda file: file.write(_as_records(known, with_header=True)))
        for name in earlier:
            folder.discard(name)


def _as_records(known: Sequence[Scalar], *, with_header: bool) -> bytes:
    """Events as they stand in a file, each with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in _events(known, with_header=with_header):
        writer.write(event)
    return buffer.getvalue()


def _events(known: Sequence[Scalar], *, with_header: bool) -> Iterator[bytes]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    now = time.time()
    if with_header:
        oldest = max((scalar.age for scalar in known), default=0.0)
        yield Event(wall_time=now - oldest, file_version="brain.Event:2").SerializeToString()
    for scalar in known:
        summary = Summary(value=[Summary.Value(tag=scalar.tag, simple_value=scalar.value)])
        yield Event(wall_time=now - scalar.age, step=scalar.epoch, summary=summary).SerializeToString()
