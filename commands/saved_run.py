"""A run that another command goes on with: what config.json says of it, and its weights.

Anybody may have written these files. What is read is of the type that it should be, or refused in one line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from fire.core import FireError

from commands.line.bind import checked, defaults_of
from commands.networks import check_network, image_size_of
from train.errors import UserError
from train.run.config import CONFIG, MODEL, read_config, require_classes, texts
from train.run.files import load_tensors

# Flags that leave the results of a run as they are. --efficient, --compile and --threads change them by rounding, or
# not at all.
FREE_FLAGS = ("save", "data", "download", "resume", "efficient", "compile", "threads", "tensorboard", "debug")

# Flags whose None lets the program choose. What it chose is in config.json.
CHOSEN_FLAGS = ("data", "image_size", "augment", "valid_size", "seed")

SMALLEST_STD = 1e-6  # of pixels from 0 to 1; what is divided by it stays finite


@dataclass(frozen=True)
class SavedRun:
    """What a run trained.

    Attributes:
        path: Its folder.
        flags: Of the command that trained it, as typed and checked values. Those that config.json leaves out have
            their defaults.
        classes: Their names, in the order of the logits.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, likewise.
        versions: Of the packages that trained it, by name.
        git_revision: Of the program that trained it, if that is known.
    """

    path: Path
    flags: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    versions: dict[str, str]
    git_revision: str | None

    def weights(self) -> dict[str, Any]:
        """The state_dict of the chosen epoch, on the CPU. Nobody has checked names and shapes yet.

        Raises:
            UserError: If model.pt is missing, damaged or cannot be read.
        """
        return load_tensors(self.path / MODEL)

    def require_classes(self, classes: Sequence[str]) -> None:
        """Make sure that a data set has the classes that the run was trained on.

        Raises:
            UserError: If it has others.
        """
        require_classes(classes, self.classes, folder=self.path)

    def origin(self) -> dict[str, Any]:
        """All that decides its results, as plain values. Names of folders are not among them."""
        flags = {
            flag: value.name if isinstance(value, Path) else value
            for flag, value in self.flags.items()
            if flag not in FREE_FLAGS
        }
        return {"flags": flags, "versions": self.versions, "git_revision": self.git_revision}


def read_saved_run(folder: Path, *, command: Callable[..., Any]) -> SavedRun:
    """Read what config.json says of a run.

    Args:
        folder: Where --save put it.
        command: What trained it. Its signature says which flags there are, and what values they take.

    Raises:
        UserError: If there is no run, or config.json cannot be used.
    """
    _require_folder(folder)
    config = read_config(folder)
    if config is None:
        raise UserError(f"--save {folder} holds no run: it has no {CONFIG}")
    try:
        return SavedRun(
            path=folder,
            flags=_checked_flags(command, config["flags"]),
            classes=texts(config, "classes"),
            mean=_channels(config, "mean", least=0),
            std=_channels(config, "std", least=SMALLEST_STD),
            versions=_versions(config),
            git_revision=_git_revision(config),
        )
    except (FireError, ValueError, UserError) as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error


def _checked_flags(command: Callable[..., Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Typed and checked flags, of a network that exists, with the size of its images."""
    flags = defaults_of(command) | checked(command, recorded)
    check_network(flags["network"], depth=flags["depth"], growth_rate=flags["growth_rate"])
    of_images = {"dataset": flags["dataset"], "image_size": flags["image_size"]}
    return flags | {"image_size": image_size_of(flags["network"], **of_images)}


def _require_folder(folder: Path) -> None:
    try:
        is_there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:
        raise UserError(f"--save {folder} cannot be read: {error.strerror or error}") from error
    if not is_there:
        raise UserError(f"--save {folder} does not exist")
    if not is_folder:
        raise UserError(f"--save is {str(folder)!r}, but must be a folder, not a file")


def _channels(config: dict[str, Any], name: str, *, least: float) -> tuple[float, float, float]:
    value = config.get(name)
    numbers = value if isinstance(value, list) else []
    fit = [type(number) in (int, float) and least <= number <= 1 for number in numbers]
    _require(len(fit) == 3 and all(fit), name, value, f"three numbers from {least:g} to 1")
    red, green, blue = map(float, numbers)
    return red, green, blue


def _versions(config: dict[str, Any]) -> dict[str, str]:
    value = config.get("versions")
    is_dict = isinstance(value, dict) and all(isinstance(version, str) for version in value.values())
    _require(is_dict, "versions", value, "texts by name")
    return value


def _git_revision(config: dict[str, Any]) -> str | None:
    value = config.get("git_revision")
    _require(value is None or isinstance(value, str), "git_revision", value, "a text or nothing")
    return value


def _require(condition: Any, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {short_repr(value)}, but must be {allowed}")
