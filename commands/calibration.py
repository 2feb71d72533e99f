"""calibration.json in the folder of a run: a temperature, and the weights that it was fitted for.

Logits are divided by the temperature before they become probabilities. The command evaluate writes the file, predict
and export use it. Anybody may have written it, so every value is checked when it is read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from commands.saved_run import SavedRun
from commands.weights_file import WeightsFile
from train.errors import UserError
from train.run.config import read_small
from train.terminal import say_error

CALIBRATION = "calibration.json"
FORMAT = 1  # of the file
LARGEST = 100_000  # bytes
LOWEST, HIGHEST = 0.01, 100.0  # temperatures


@dataclass(frozen=True)
class Calibration:
    """A temperature for the logits of a network.

    Attributes:
        temperature: Logits are divided by it; from `LOWEST` to `HIGHEST`.
        weights: Digest of the weights that it was fitted for, see `digest`.
        images: Number of validation images that it was fitted on.
    """

    temperature: float
    weights: str
    images: int

    def as_json(self) -> bytes:
        """Return the content of the file."""
        content = {
            "format": FORMAT,
            "temperature": self.temperature,
            "weights": self.weights,
            "validation_images": self.images,
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 digest of a state_dict: of names, types, shapes and every bit, in any order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def read_calibration(folder: Path) -> Calibration | None:
    """Read calibration.json; None if there is no such file.

    Raises:
        UserError: If it cannot be used.
    """
    path = folder / CALIBRATION
    text = read_small(path, largest=LARGEST)
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    match content:
        case {
            "format": int() as written_in,
            "temperature": int() | float() as temperature,
            "weights": str() as weights,
            "validation_images": int() as images,
        } if written_in == FORMAT and LOWEST <= temperature <= HIGHEST:
            return Calibration(float(temperature), weights, images)
    raise UserError(f"{path} is no calibration by this version of this program; give it another name")


def calibration_of(run: SavedRun | WeightsFile, network: nn.Module) -> Calibration | None:
    """Read the calibration of a network; None if there is none, or if it is for other weights, which a note says.

    Args:
        run: The run, or a file of weights, which has no calibration.
        network: Its network, with its weights.

    Raises:
        UserError: If calibration.json cannot be used.
    """
    calibration = read_calibration(run.path) if isinstance(run, SavedRun) else None
    if calibration is None or calibration.weights == digest(network.state_dict()):
        return calibration
    say_error(
        f"note: the temperature in {run.path / CALIBRATION} is not used: the run has other weights by now; "
        "evaluate --calibrate True fits it again"
    )
    return None


class Calibrated(nn.Module):
    """A network whose logits are divided by a temperature.

    Args:
        network: Maps images (N, C, H, W) to logits (N, classes).
        temperature: The temperature.
    """

    def __init__(self, network: nn.Module, temperature: float):
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.network(images) / self.temperature
