"""Classify image files with the network of a run: the most likely classes of each, as lines and as CSV."""

from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from commands.calibration import CALIBRATION, Calibrated, calibration_of
from commands.memory import larger_machine, memory_explained, smaller_batch
from commands.outputs import write_new
from commands.saved_run import SavedRun
from commands.tables import to_csv
from commands.weights_file import WeightsFile
from data.datasets import DATASETS
from data.images import ImageBatch, list_images, read_images
from train import cpu_contention, replicas, runtime
from train.errors import RunError
from train.terminal import Bar, printable, say, say_error

# Widest columns of paths and of class names; longer texts are printed in full and move only their own line.
WIDEST_PATH, WIDEST_CLASS = 60, 30
MANY = 1000  # files, which take about a second


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of an image, the most likely one first.

    Attributes:
        path: Path of the image file.
        classes: Names of the classes.
        probabilities: Probability of each of these classes, from 0 to 1.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict_images(
    run: SavedRun | WeightsFile,
    images: Sequence[Path],
    *,
    top: int,
    batch_size: int,
    threads: int | None,
    csv: Path | None,
) -> None:
    """Print the most likely classes of image files, and on request write them to a CSV file.

    Images are resized and cropped in the same way as the images that the run is tested on. If the folder of the run has
    a temperature for its weights, probabilities are those at this temperature, and a line on stderr says so.

    Args:
        run: The run, or a file of weights.
        images: Image files, or folders of them.
        top: Number of classes to print for each image, from 1 to all.
        batch_size: Images in a batch.
        threads: CPU threads for computation. None: torch decides.
        csv: New CSV file for paths, classes and probabilities. None: no such file.

    Raises:
        DataError: If a file or folder does not exist, or a folder has no image.
        UserError: If the weights cannot be used.
        RunError: If a file cannot be read as an image, after all others have been classified; if the network's output
            is NaN, memory runs out, or the CSV file cannot be written.
    """
    paths = list_images(images)
    runtime.use_threads(threads)
    runtime.be_deterministic()
    runtime.use_precision(run.settings.precision)
    device = runtime.pick_device()
    with memory_explained(larger_machine):
        network = runtime.placed(run.network(), device)
        calibration = calibration_of(run, network)
    with memory_explained(smaller_batch(batch_size)):
        model = replicas.replicate(network, device, precision=run.settings.precision).evaluation
        if calibration:
            model = Calibrated(model, calibration.temperature)
            temperature = f"{calibration.temperature:.4g}, from {run.path / CALIBRATION}"
            say_error(f"note: probabilities are those at temperature {temperature}")
        batches = read_images(
            paths,
            image_size=run.settings.pixels,
            channels=run.settings.in_channels,
            grey=DATASETS[run.settings.dataset].grey,
            mean=run.mean,
            std=run.std,
            batch_size=batch_size,
            device=device,
        )
        with cpu_contention.warn_if_busy(device):
            predictions, unreadable = predict_files(model, batches, classes=run.classes, top=top, paths=paths)
    if csv:
        write_new(csv, as_csv(predictions, top=top))
    if unreadable:
        raise RunError(f"{unreadable} of {len(paths)} files could not be read as images")


@torch.no_grad()
def most_likely(model: nn.Module, images: Tensor, *, top: int) -> tuple[Tensor, Tensor]:
    """Compute the most likely classes of images, the most likely one first.

    Args:
        model: Maps images (n, C, H, W) to logits; in eval mode.
        images: float (n, C, H, W), normalised, on the device of the model.
        top: Number of classes for each image, from 1 to all.

    Returns:
        Probabilities, float32 (n, top), and labels, int64 (n, top), both on the CPU.
    """
    probabilities, labels = model(images).float().softmax(1).topk(top)
    return probabilities.cpu(), labels.cpu()


def predict_files(
    model: nn.Module, batches: Generator[ImageBatch], *, classes: Sequence[str], top: int, paths: Sequence[str]
) -> tuple[list[Prediction], int]:
    """Classify image files, and print a line for each: on stdout, or on stderr if it cannot be read.

    If there are many files, a progress bar is shown on stderr if that is a terminal.

    Args:
        model: Maps images (n, C, H, W) to logits; put into eval mode.
        batches: The files, with images on the device of the model; closed in any case.
        classes: Names of the classes by label.
        top: Number of classes to print for each image, from 1 to all.
        paths: Paths of all files.

    Returns:
        The predictions, and the number of files that could not be read.

    Raises:
        RunError: If the network's output is NaN, for example because of infinite logits.
    """
    model.eval()
    predictions: list[Prediction] = []
    unreadable = 0
    widths = _column_width(paths, WIDEST_PATH), _column_width(classes, WIDEST_CLASS)
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
    """The length of the longest name that is not too long for a column."""
    return max((length for name in names if (length := len(printable(name))) <= widest), default=0)


def _predict(
    model: nn.Module, paths: Sequence[str], images: Tensor, classes: Sequence[str], top: int
) -> list[Prediction]:
    probabilities, labels = most_likely(model, images, top=top)
    invalid = probabilities.isnan().any(1).nonzero().flatten().tolist()
    if invalid:
        raise RunError(f"the network's output for {paths[invalid[0]]} is NaN or infinite, so it means nothing")
    rows = zip(paths, probabilities.tolist(), labels.tolist(), strict=True)
    return [
        Prediction(path, tuple(classes[label] for label in best), tuple(likelihoods))
        for path, likelihoods, best in rows
    ]


def as_line(prediction: Prediction, widths: tuple[int, int]) -> str:
    """Format the path, and each class with its probability, in columns.

    Args:
        prediction: The prediction.
        widths: Width in characters of the path and of a class name.
    """
    path_width, class_width = widths
    columns = [
        f"{printable(name):<{class_width}} {probability:7.2%}"
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    return "  ".join([f"{printable(prediction.path):<{path_width}}", *columns])


def as_csv(predictions: Sequence[Prediction], *, top: int) -> bytes:
    """Write a CSV file with a line for each image: its file, and name and probability of its most likely classes."""
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    columns = ["file", *(f"{column}{number}" for number in numbers for column in ("class", "probability"))]
    records = []
    for one in predictions:
        pairs = zip(one.classes, one.probabilities, strict=True)
        cells = [one.path, *(cell for name, probability in pairs for cell in (name, f"{probability:.6g}"))]
        records.append(dict(zip(columns, cells, strict=True)))
    return to_csv(records, columns=columns)
