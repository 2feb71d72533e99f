"""A trained network as a file that needs none of this code: from pixels to logits, normalisation included.

A file is read back and compared with the network before it gets its name.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from commands.export.exporters import EXPORTERS, INPUT, OUTPUT, Exporter
from commands.export.silence import silenced
from commands.saved_run import SavedRun
from train.errors import RunError
from train.out_of_memory import is_out_of_memory
from train.run.open_folder import atomic_write

TRACED = 2  # images that an exporter follows through the network; 1 would be taken for a constant
COMPARED = (1, 3)  # images in the batches on which file and network are compared


class OnPixels(nn.Module):
    """A network behind the normalisation that it was trained with, in eval mode.

    Maps pixels (N, 3, H, W) from 0 to 1 to the logits of the network.

    Args:
        network: Takes normalised images. It is put into eval mode.
        mean: Per channel, of pixels from 0 to 1.
        std: Per channel, likewise.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) to logits (N, classes)."""
        return self.network((images - self.mean) / self.std)


@dataclass(frozen=True)
class Exported:
    """A file that computes what the network does.

    Attributes:
        path: The file.
        kind: What it is, and what read it back.
        size: In bytes.
        difference: Between logits of file and network, the largest, divided by the largest logit of the batch.
        num_classes: Number of logits.
        image_size: Height and width of images.
    """

    path: Path
    kind: str
    size: int
    difference: float
    num_classes: int
    image_size: int

    def describe(self) -> tuple[str, str]:
        """Two lines for a user."""
        return (
            f"{self.path}: {self.kind}, {self.size:,} bytes; largest relative difference to the network's own "
            f"logits {self.difference:.1e}",
            f"{INPUT}: float32 (N, 3, {self.image_size}, {self.image_size}), RGB, from 0 to 1; "
            f"{OUTPUT}: float32 (N, {self.num_classes})",
        )


def export_network(
    network: nn.Module, run: SavedRun, path: Path, *, format: str, preprocessing: Mapping[str, Any]
) -> Exported:
    """Write the network of a run, on the CPU and in 32 bits, as a file of its own.

    Args:
        network: Maps normalised images (N, 3, H, W) to logits (N, classes). It is put into eval mode.
        run: Tells the normalisation, and what the file says of its origin.
        path: The file, which does not exist.
        format: A key of `EXPORTERS`.
        preprocessing: Plain values that say how a picture becomes the pixels that the file takes.

    Raises:
        RunError: If the network's logits are not finite, an exporter fails, the file computes something else than the
            network, or it cannot be written. No file is left.
    """
    exporter, on_pixels, image_size = EXPORTERS[format], OnPixels(network, run.mean, run.std), run.flags["image_size"]
    _require_finite(on_pixels, image_size)
    with _in_one_line(f"--format {format} failed, and {path} is not written"):
        content = exporter.write(on_pixels, _pixels(TRACED, image_size), metadata_of(run, preprocessing))
    difference = float("nan")

    def write_and_compare(file: BinaryIO) -> None:
        nonlocal difference
        file.write(content)
        file.seek(0)
        with _in_one_line(f"what was exported cannot be read back, and {path} is not written"):
            difference = _largest_difference(on_pixels, exporter.read(file.read()), image_size)
        _require_small(difference, exporter, path)
        if path.exists():
            raise RunError(f"{path} has come into being meanwhile; it stays as it is")

    atomic_write(path, write_and_compare)
    return Exported(path, exporter.kind(), len(content), difference, len(run.classes), image_size)


def metadata_of(run: SavedRun, preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """What a file says besides the network, each value as JSON."""
    values = {
        "classes": run.classes,
        "mean": run.mean,
        "std": run.std,
        "image_size": run.flags["image_size"],
        "preprocessing": dict(preprocessing),
        "origin": run.origin(),
    }
    return {name: json.dumps(value) for name, value in values.items()}


@torch.no_grad()
def _require_finite(on_pixels: OnPixels, image_size: int) -> None:
    if not on_pixels(_pixels(1, image_size)).isfinite().all():
        raise RunError("the network's logits are NaN or infinite, so that they mean nothing; nothing is written")


@torch.no_grad()
def _largest_difference(on_pixels: OnPixels, run: Callable[[Tensor], Tensor], image_size: int) -> float:
    """Between two functions of pixels, relative to the largest logit of a batch; NaN if there is one anywhere."""
    differences = []
    for num_images in COMPARED:
        pixels = _pixels(num_images, image_size)
        expected, actual = on_pixels(pixels), run(pixels)
        if actual.shape != expected.shape:
            raise ValueError(f"logits are {tuple(actual.shape)}, not {tuple(expected.shape)}")
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # 0 differs from 0 by nothing
        differences.append((actual - expected).abs().max() / scale)
    return torch.stack(differences).max().item()


def _pixels(num_images: int, image_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_images)
    return torch.rand(num_images, 3, image_size, image_size, generator=generator)


def _require_small(difference: float, exporter: Exporter, path: Path) -> None:
    if not difference <= exporter.tolerance:  # as NaN is not either
        raise RunError(
            f"the exported logits differ from the network's own by {difference:.1e} of the largest, more than "
            f"{exporter.tolerance:.0e}; {path} is not written"
        )


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Silence other people's code, and say in one line what it raises."""
    try:
        with silenced():
            yield
    # Whatever an exporter raises, the answer is the same.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"{what}: {_first_reason(error)}") from error


def _first_reason(error: BaseException) -> str:
    """What led to an error; exporters hide it behind pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
