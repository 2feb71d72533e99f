"""Fit a temperature on the validation images of a run, and keep it in the folder of the run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from commands.calibration import CALIBRATION, HIGHEST, LOWEST, Calibration, read_calibration
from commands.evaluate.temperature import fit_temperature
from train.errors import RunError, UserError
from train.run.acquire import locked
from train.run.open_folder import OpenFolder


@contextmanager
def held(path: Path) -> Iterator[OpenFolder]:
    """Hold the folder of a run open and locked, to write calibration.json at the end; no training goes on in it.

    Raises:
        UserError: If the folder cannot be written, is in use, or has a calibration.json that is not ours.
    """
    read_calibration(path)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(locked(path))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--calibrate True cannot write {path / CALIBRATION}: {reason}") from error
        yield folder


def fit_calibration(logits: Tensor, labels: Tensor, *, weights: str) -> Calibration:
    """Fit the temperature of the weights with this digest to logits (N, C) and labels (N,) of validation images.

    Raises:
        RunError: If a logit is NaN or infinite, or no temperature fits better than all others.
    """
    if not logits.isfinite().all():
        raise RunError("logits of validation images are NaN or infinite, so no temperature fits them")
    temperature = fit_temperature(logits, labels)
    images = f"the {len(labels):,} validation images"
    if temperature == LOWEST:
        raise RunError(
            f"no temperature fits {images}: the lower it is, the better, as where all of them are classified "
            "correctly; a run with a larger --valid_size may have one"
        )
    if temperature == HIGHEST:
        raise RunError(f"no temperature fits {images}: the higher it is, the better, as where the network only guesses")
    return Calibration(temperature, weights, len(labels))


def write_calibration(calibration: Calibration, folder: OpenFolder) -> str:
    """Write calibration.json, and return a line for the user.

    Raises:
        RunError: If the system refuses.
    """
    folder.write(CALIBRATION, lambda file: file.write(calibration.as_json()))
    return (
        f"Temperature {calibration.temperature:.4g}, fitted on {calibration.images:,} validation images, is in "
        f"{folder.path / CALIBRATION}; predict and export use it."
    )
