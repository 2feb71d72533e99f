"""A run that another command uses: its settings and classes, read from config.json, and its network.

Anybody may have written these files, so every value is checked when it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any

from fire.core import FireError

from commands.line.flags import Role
from commands.networks import network_with
from commands.settings import TrainSettings
from data.errors import DataError
from train.errors import UserError
from train.run.config import CHECKPOINT, CONFIG, MODEL, RESULTS, read_config, require_classes, texts
from train.run.files import load_tensors

if TYPE_CHECKING:
    from models import DenseNet

SMALLEST_STD = 1e-6  # of pixels from 0 to 1; what is divided by it stays finite


@dataclass(frozen=True)
class SavedRun:
    """A run, finished or not.

    Attributes:
        path: Its folder.
        settings: Settings that it was trained with. Those that config.json leaves out have their defaults.
        classes: Names of the classes, in the order of the logits.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        versions: Versions of the packages that trained it, by name.
        git_revision: Commit of the program that trained it, if that is known.
    """

    path: Path
    settings: TrainSettings
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    versions: dict[str, str]
    git_revision: str | None

    def weights(self) -> dict[str, Any]:
        """The state_dict of the chosen epoch, on the CPU. Names and shapes are not checked yet.

        Raises:
            UserError: If model.pt is missing, damaged or cannot be read.
        """
        if (self.path / CHECKPOINT).exists() and not any((self.path / name).exists() for name in (MODEL, RESULTS)):
            raise UserError(
                f"the run in {self.path} has no chosen weights yet: it has not finished an epoch; go on with it by "
                "--resume True"
            )
        return load_tensors(self.path / MODEL)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Make sure that a data set has the classes that the run was trained on.

        Raises:
            UserError: If it has others.
        """
        require_classes(classes, self.classes, folder=self.path)

    def network(self) -> "DenseNet":
        """The network with the weights of the chosen epoch, on the CPU.

        Raises:
            UserError: If model.pt cannot be used, or is of another network than config.json describes.
            RunError: If its weights are NaN or infinite, or a variance is negative.
        """
        network = self.settings.network_settings
        misfit = f"is of another network than its {CONFIG} says"
        return network_with(self.weights(), network, len(self.classes), path=self.path / MODEL, misfit=misfit)

    def origin(self) -> dict[str, Any]:
        """Settings and versions that decide the results of the run, as plain values, without names of folders."""
        free = self.settings.names(Role.FREE)
        values = {name: getattr(self.settings, name) for name in self.settings.flags() if name not in free}
        flags = {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
        return {"flags": flags, "versions": self.versions, "git_revision": self.git_revision}


def read_saved_run(folder: Path) -> SavedRun:
    """Read config.json of a run.

    Args:
        folder: Folder of the run.

    Raises:
        UserError: If there is no run, or config.json cannot be used.
    """
    _require_folder(folder)
    config = read_config(folder)
    if config is None:
        inside = min(folder.glob(f"*/{CONFIG}"), default=None)
        hint = f"; there are runs in it, such as --save {inside.parent}" if inside else ""
        raise UserError(f"--save {folder} holds no run: it has no {CONFIG}{hint}")
    try:
        settings = TrainSettings.recorded(config["flags"], folder=folder)
        return SavedRun(
            path=folder,
            settings=settings,
            classes=texts(config, "classes"),
            mean=channel_means(config, number=settings.in_channels),
            std=channel_stds(config, number=settings.in_channels),
            versions=_versions(config),
            git_revision=_git_revision(config),
        )
    except (FireError, ValueError, UserError, DataError) as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error


def _require_folder(folder: Path) -> None:
    try:
        is_there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:
        raise UserError(f"--save {folder} cannot be read: {error.strerror or error}") from error
    if not is_there:
        raise UserError(f"--save {folder} does not exist")
    if not is_folder:
        raise UserError(f"--save is {str(folder)!r}, but must be a folder, not a file")


def channel_means(config: dict[str, Any], *, number: int) -> tuple[float, ...]:
    """Read the mean of each of a number of channels; raise a ValueError if they cannot be means of pixels."""
    return _channels(config, "mean", number=number, least=0)


def channel_stds(config: dict[str, Any], *, number: int) -> tuple[float, ...]:
    """Read the standard deviation of each of a number of channels; raise a ValueError if they cannot be ones."""
    return _channels(config, "std", number=number, least=SMALLEST_STD)


def _channels(config: dict[str, Any], name: str, *, number: int, least: float) -> tuple[float, ...]:
    value = config.get(name)
    numbers = value if isinstance(value, list) else []
    fit = [type(each) in (int, float) and least <= each <= 1 for each in numbers]
    if len(fit) != number or not all(fit):
        raise _unusable(name, value, f"{number} number{'' if number == 1 else 's'} from {least:g} to 1")
    return tuple(map(float, numbers))


def _versions(config: dict[str, Any]) -> dict[str, str]:
    value = config.get("versions")
    if isinstance(value, dict) and all(isinstance(version, str) for version in value.values()):
        return value
    raise _unusable("versions", value, "texts by name")


def _git_revision(config: dict[str, Any]) -> str | None:
    value = config.get("git_revision")
    if value is None or isinstance(value, str):
        return value
    raise _unusable("git_revision", value, "a text or nothing")


def _unusable(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name} is {short_repr(value)}, but must be {allowed}")
