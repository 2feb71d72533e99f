"""Export the network of a run as a file that needs none of this code: from pixels to logits, normalisation included.

The file is read back and compared with the network before it gets its name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from commands.calibration import CALIBRATION, Calibrated, calibration_of
from commands.export.card import model_card
from commands.export.exporters import EXPORTERS, INPUT, OUTPUT
from commands.export.formats import CARD, FORMATS
from commands.export.quiet import failing_in_one_line
from commands.memory import larger_machine, memory_explained
from commands.outputs import write_new
from commands.saved_run import SavedRun
from commands.trained import read_network
from commands.weights_file import WeightsFile
from data.datasets import DATASETS
from data.decode import COLOURS
from data.images import describe_preparation
from models import densenet_arguments
from train import runtime
from train.errors import RunError
from train.run.open_folder import atomic_write
from train.terminal import say

TRACED = 2  # images in the batch that an exporter traces; a batch of 1 would be exported as a constant
COMPARED = (1, 3)  # images in the batches on which the file is compared with the network


class PixelNetwork(nn.Module):
    """A network together with the normalisation it was trained with, in eval mode.

    Maps pixels (N, C, H, W) from 0 to 1 to the logits of the network.

    Args:
        network: Maps normalised images (N, C, H, W) to logits. It is put into eval mode.
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel, for pixels from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.eval()

    @property
    def channels(self) -> int:
        """Channels C of the pixels."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, classes)."""
        return self.network((images - self.mean) / self.std)


@dataclass(frozen=True)
class ExportedFile:
    """A file that computes the same logits as the network.

    Attributes:
        path: Path of the file.
        kind: Its format, and the program that read it back.
        size: Bytes.
        difference: Largest difference between logits of file and network, relative to the largest logit of a batch.
        num_classes: Number of logits.
        image_size: Height and width of images.
        channels: Channels of images.
    """

    path: Path
    kind: str
    size: int
    difference: float
    num_classes: int
    image_size: int
    channels: int

    def describe(self) -> str:
        """A line for a user about the file."""
        return (
            f"{self.path}: {self.kind}, {self.size:,} bytes; largest relative difference to the network's own "
            f"logits {self.difference:.1e}"
        )

    def describe_function(self) -> str:
        """A line for a user about the input and the output of the network."""
        colours = f"{COLOURS[self.channels]}, " if self.channels in COLOURS else ""
        return (
            f"{INPUT}: float32 (N, {self.channels}, {self.image_size}, {self.image_size}), {colours}from 0 to 1; "
            f"{OUTPUT}: float32 (N, {self.num_classes})"
        )


def export_run(run: SavedRun | WeightsFile, output: Path, *, format: str, threads: int | None) -> None:
    """Write the network of a run to a file for other programs, with a model card if the format has one.

    Lines about the file are printed.

    Args:
        run: The run, or a file of weights.
        output: The file, which does not exist.
        format: A key of `FORMATS`.
        threads: CPU threads for computation. None: torch decides.

    Raises:
        UserError: If the weights cannot be used.
        RunError: If memory runs out, the model card cannot be written, or as `export_network` raises it.
    """
    image_size, grey = run.settings.pixels, DATASETS[run.settings.dataset].grey
    runtime.use_threads(threads)
    with memory_explained(larger_machine):
        preprocessing = describe_preparation(image_size=image_size, channels=run.settings.in_channels, grey=grey)
        record, loaded = read_network(run)
        calibration = calibration_of(run, loaded)
        is_divided = calibration is not None and not FORMATS[format].has_card
        temperature = calibration.temperature if calibration and is_divided else 1.0
        metadata = metadata_of(run, image_size=image_size, preprocessing=preprocessing, temperature=temperature)
        network = PixelNetwork(Calibrated(loaded, temperature) if is_divided else loaded, run.mean, run.std)
        exported = export_network(network, output, format=format, image_size=image_size, metadata=metadata)
    if not FORMATS[format].has_card:
        say(exported.describe(), exported.describe_function())
        if is_divided:
            say(f"{OUTPUT} are divided by temperature {temperature:.4g}, from {run.path / CALIBRATION}")
        return
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    arguments = densenet_arguments(loaded.state_dict())
    card = model_card(run, record, arguments, calibration, file=output.name, parameters=parameters)
    write_new(output.with_name(CARD), card.encode())
    say(exported.describe(), f"The model card {output.with_name(CARD)} says how to load it.")


def metadata_of(
    run: SavedRun | WeightsFile,
    *,
    image_size: int,
    preprocessing: Mapping[str, str | int],
    temperature: float = 1.0,
) -> dict[str, str]:
    """Return the texts that a file holds besides the network, each of them JSON.

    Args:
        run: The run, or a file of weights.
        image_size: Height and width of images.
        preprocessing: The steps from an image of any size to the pixels that the file takes, in their order.
        temperature: The number by which the logits are divided.
    """
    values = {
        "classes": run.classes,
        "mean": run.mean,
        "std": run.std,
        "image_size": image_size,
        "preprocessing": dict(preprocessing),
        "temperature": temperature,
        "origin": run.origin(),
    }
    return {name: json.dumps(value) for name, value in values.items()}


def export_network(
    network: PixelNetwork, path: Path, *, format: str, image_size: int, metadata: Mapping[str, str]
) -> ExportedFile:
    """Write a network, on the CPU and in 32 bits, to a file that needs none of this code.

    Args:
        network: Maps pixels (N, C, H, W) from 0 to 1 to logits (N, classes).
        path: The file, which does not exist.
        format: A key of `EXPORTERS`.
        image_size: Height and width of images.
        metadata: Texts by name that the file holds besides the network.

    Raises:
        RunError: If the network's logits are not finite, the exporter fails, the file does not compute the same logits
            as the network, or it cannot be written. No file is left.
    """
    exporter = EXPORTERS[format]
    num_classes = _num_finite_logits(network, image_size)
    with failing_in_one_line(f"--format {format} failed, and {path} is not written"):
        content = exporter.write(network, _random_pixels(TRACED, network.channels, image_size), metadata)
    difference = float("nan")

    def write_and_compare(file: BinaryIO) -> None:
        nonlocal difference
        file.write(content)
        file.seek(0)
        with failing_in_one_line(f"the exported file cannot be read back, and {path} is not written"):
            difference = largest_difference(network, exporter.read(file.read()), image_size)
        if not difference <= exporter.tolerance:  # NaN must fail too
            raise RunError(
                f"the exported logits differ from the network's own by {difference:.1e} of the largest, more than "
                f"{exporter.tolerance:.0e}; {path} is not written"
            )
        if path.exists():
            raise RunError(f"{path} was created by another program in the meantime; it stays as it is")

    atomic_write(path, write_and_compare)
    return ExportedFile(path, exporter.describe(), len(content), difference, num_classes, image_size, network.channels)


@torch.no_grad()
def _num_finite_logits(network: PixelNetwork, image_size: int) -> int:
    """The number of logits, after making sure that they are finite."""
    (logits,) = network(_random_pixels(1, network.channels, image_size))
    if not logits.isfinite().all():
        raise RunError("the network's logits are NaN or infinite, so they mean nothing; nothing is written")
    return len(logits)


@torch.no_grad()
def largest_difference(network: PixelNetwork, exported: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Compare two functions of pixels on random images.

    Args:
        network: The network.
        exported: The function of its file.
        image_size: Height and width of images.

    Returns:
        The largest difference of logits, relative to the largest logit of a batch; NaN if any difference is NaN.

    Raises:
        ValueError: If the logits differ in shape.
    """
    differences = []
    for num_images in COMPARED:
        pixels = _random_pixels(num_images, network.channels, image_size)
        expected, actual = network(pixels), exported(pixels)
        if actual.shape != expected.shape:
            raise ValueError(f"logits are {tuple(actual.shape)}, not {tuple(expected.shape)}")
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # keeps 0 / 0 from being NaN
        differences.append((actual - expected).abs().max() / scale)
    return torch.stack(differences).max().item()


def _random_pixels(num_images: int, channels: int, image_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_images)
    return torch.rand(num_images, channels, image_size, image_size, generator=generator)
