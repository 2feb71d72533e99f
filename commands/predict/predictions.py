"""What a trained network says of images: the likeliest classes of each, as lines and as CSV."""

from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from commands.tables import to_csv
from train.errors import RunError
from train.terminal import Bar, printable, say, say_error

WIDEST = (60, 30)  # columns that paths and names of classes are padded to; longer ones are printed whole
MANY = 1000  # files, a second's work

# Paths of some image files; the images (n, 3, H, W), normalised, on the device of the network; and what went wrong with
# other files.
FileBatch = tuple[Sequence[str], Tensor, Sequence[Exception]]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the first one first.

    Attributes:
        path: Of its file.
        classes: Their names.
        probabilities: From 0 to 1, likewise.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@torch.no_grad()
def most_likely(model: nn.Module, images: Tensor, *, top: int) -> tuple[Tensor, Tensor]:
    """Probabilities float32 (n, top) of the likeliest classes of images (n, 3, H, W), and their labels int64 (n, top).

    They are on the CPU, the likeliest first. `model` must be in eval mode.
    """
    probabilities, labels = model(images).float().softmax(1).topk(top)
    return probabilities.cpu(), labels.cpu()


def predict_files(
    model: nn.Module, batches: Generator[FileBatch], *, classes: Sequence[str], top: int, paths: Sequence[str]
) -> tuple[list[Prediction], int]:
    """Classify image files, and print a line for each: on stdout, or on stderr if it could not be read.

    Many files get a progress bar on stderr if that is a terminal.

    Args:
        model: Put into eval mode.
        batches: The files; closed in any case.
        classes: Names by label.
        top: Classes of each image that are printed, from 1 to all.
        paths: Of all files.

    Returns:
        The predictions, and how many files could not be read.

    Raises:
        RunError: If an answer of the network is NaN, as by infinite logits.
    """
    model.eval()
    predictions: list[Prediction] = []
    unreadable = 0
    widths = _column_width(paths, WIDEST[0]), _column_width(classes, WIDEST[1])
    with closing(batches), Bar("images", len(paths), unit=" files") if len(paths) >= MANY else nullcontext() as bar:
        for readable, images, errors in batches:
            new = _predict(model, readable, images, classes, top) if readable else []
            say(*(as_line(one, widths) for one in new))
            say_error(*(f"error: {error}" for error in errors))
            predictions += new
            unreadable += len(errors)
            if bar:
                bar.advance(len(readable) + len(errors))
    return predictions, unreadable


def _column_width(names: Sequence[str], widest: int) -> int:
    """The length of the longest name of those that are not too long for a column."""
    return max((length for name in names if (length := len(printable(name))) <= widest), default=0)


def _predict(
    model: nn.Module, paths: Sequence[str], images: Tensor, classes: Sequence[str], top: int
) -> list[Prediction]:
    probabilities, labels = most_likely(model, images, top=top)
    faulty = probabilities.isnan().any(1).nonzero()
    if len(faulty):
        raise RunError(f"the network's answer to {paths[faulty[0]]} is NaN or infinite, so that it means nothing")
    rows = zip(probabilities.tolist(), labels.tolist(), strict=True)
    return [
        Prediction(path, tuple(classes[label] for label in labels), tuple(probabilities))
        for path, (probabilities, labels) in zip(paths, rows, strict=True)
    ]


def as_line(prediction: Prediction, widths: tuple[int, int]) -> str:
    """The path, and each class with its probability, in columns: `widths` are those of the path and of a class."""
    path_width, class_width = widths
    columns = [
        f"{printable(name):<{class_width}} {probability:7.2%}"
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    return "  ".join([f"{printable(prediction.path):<{path_width}}", *columns])


def as_csv(predictions: Sequence[Prediction], *, top: int) -> bytes:
    """A header and a row for each image: file, and class and probability of the likeliest classes."""
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    columns = ["file", *(f"{column}{number}" for number in numbers for column in ("class", "probability"))]
    records = []
    for one in predictions:
        pairs = zip(one.classes, one.probabilities, strict=True)
        cells = [one.path, *(cell for name, probability in pairs for cell in (name, f"{probability:.6g}"))]
        records.append(dict(zip(columns, cells, strict=True)))
    return to_csv(records, columns=columns)
