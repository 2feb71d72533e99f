"""A file of weights that another command uses: the network that they belong to, and what is known of its data set."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.networks import flags_of_arguments, network_with
from commands.saved_run import channel_means, channel_stds
from commands.settings import TrainSettings
from data.class_names import CLASS_NAMES
from data.datasets import DATASETS
from train.errors import UserError
from train.run.config import texts
from train.run.file_kinds import HEAD, is_safetensors
from train.run.safetensors_files import metadata_in

if TYPE_CHECKING:
    from data.splits import Images
    from models import DenseNet


@dataclass(frozen=True)
class WeightsFile:
    """Weights that some program has trained, and the network that they belong to.

    Attributes:
        path: The file.
        settings: Network and data set. All that concerns training is not known, and has the defaults.
        classes: Names of the classes, in the order of the logits; numbers where they have no names.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        content: What the file holds: tensors by name, or dicts of them.
        records_normalisation: Whether mean and std are those that the file records, and not those of the data set.
    """

    path: Path
    settings: TrainSettings
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content: Mapping[str, Any]
    records_normalisation: bool = False

    def network(self) -> "DenseNet":
        """The network with the weights, on the CPU.

        Raises:
            UserError: If they do not fit.
            RunError: If they are NaN or infinite, or a variance is negative.
        """
        settings = self.settings.network_settings
        return network_with(self.content, settings, len(self.classes), path=self.path, misfit="cannot be used")

    def require_classes(self, classes: Sequence[str]) -> None:
        """Make sure that a data set has as many classes as the network.

        Raises:
            UserError: If it has not.
        """
        if len(classes) != len(self.classes):
            raise UserError(
                f"the data have {len(classes):,} classes, but the weights in {self.path} {len(self.classes):,}"
            )

    def require_normalisation(self, images: "Images") -> None:
        """Make sure that mean and std are those of images: arrays have their own, which not every file records.

        Raises:
            UserError: If they are not known.
        """
        from data.images import ImageFiles

        if isinstance(images, ImageFiles) and images.are_arrays and not self.records_normalisation:
            raise UserError(f"mean and standard deviation of arrays are not known from {self.path} alone; use --save")

    def progress(self) -> str:
        """Say where the weights are from, and which others are in the file."""
        import torch

        from models import weight_places

        with torch.device("meta"):
            network = self.settings.network_settings.build(len(self.classes))
        taken, *others = (repr(place) for place in weight_places(network, self.content))
        return f"weights in {self.path}" + (f" ({taken}, not {' or '.join(others)})" if others else "")

    def verdict(self, error: float) -> str:
        """Say that no test error is recorded with which one that is measured now could be compared."""
        return "a file of weights has no recorded test error to compare with"

    def origin(self) -> dict[str, Any]:
        """Network, data set, and name and digest of the file, as plain values. How it was trained is not known."""
        flags = {name: getattr(self.settings, name) for name in ("network", "depth", "growth_rate", "dataset")}
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"flags": flags, "weights": {"file": self.path.name, "sha256": digest}}


def read_weights_file(
    path: Path, *, dataset: str, data: Path | None, image_size: int | None, given: Mapping[str, Any]
) -> WeightsFile:
    """Read weights, and find the network that they belong to.

    Args:
        path: The file.
        dataset: Data set that the weights were trained on, a key of `DATASETS`.
        data: Folder of the data set.
        image_size: Height and width of images. None: the usual size of the network.
        given: Values of the flags network, depth and growth_rate that the user asks for; None where the file decides.

    Raises:
        UserError: If the file cannot be read, or holds weights of another network or of another number of classes.
        DataError: If the folder `data` cannot be read.
    """
    from models import densenet_arguments  # torch takes seconds to import
    from train.run.legacy_weights import load_legacy_weights

    content = load_legacy_weights(path)
    try:
        arguments = densenet_arguments(content)
    except ValueError as error:
        raise UserError(f"--weights {path} cannot be used: {error}") from error
    flags = _flags_of_network(path, arguments, given)
    recorded = _recorded_values(path)
    mean, std, is_recorded = _normalisation(path, arguments["in_channels"], recorded, dataset=dataset)
    flags["in_channels"] = arguments["in_channels"]
    if image_size is None and DATASETS[dataset].free_size:
        image_size = _recorded_size(recorded)
    settings = TrainSettings(save=path, dataset=dataset, data=data, image_size=image_size, **flags).checked()
    if settings.network_settings.is_small != arguments["small_inputs"]:
        allowed = "64 or less" if arguments["small_inputs"] else "above 64"
        raise UserError(f"--image_size is {settings.pixels}, but must be {allowed} for the network in {path}")
    classes = _class_names(path, arguments["num_classes"], recorded, dataset=dataset, data=data)
    return WeightsFile(path, settings, classes, mean, std, content, is_recorded)


def _flags_of_network(path: Path, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return network, depth and growth_rate of the weights.

    Raises:
        UserError: If the user asks for another network, or no network of the command line has these weights.
    """
    found = flags_of_arguments(arguments)
    if found is None:
        is_of = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise UserError(f"the weights in {path} are of DenseNet({is_of}), which --network does not have")
    for name, value in given.items():
        if value not in (None, found[name]):
            flags = " ".join(f"--{name} {value}" for name, value in found.items())
            raise UserError(f"--{name} is {value}, but the weights in {path} are of {flags}")
    return found


def _normalisation(
    path: Path, channels: int, recorded: dict[str, Any], *, dataset: str
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return mean and standard deviation of each channel, of the file or else of the data set, and whether of the file.

    Raises:
        UserError: If it has no images of so many channels, or only a run knows those of the channels of its arrays.
    """
    from data.normalisation import fixed_normalisation

    allowed = DATASETS[dataset].channels
    if allowed is not None and channels not in allowed:
        numbers = " or ".join(map(str, allowed))
        raise UserError(
            f"the weights in {path} take images of {channels} channels, but --dataset {dataset} has {numbers}"
        )
    with suppress(ValueError):
        return channel_means(recorded, number=channels), channel_stds(recorded, number=channels), True
    spec = fixed_normalisation(DATASETS[dataset], channels=channels)
    if spec is None:
        raise UserError(
            f"the weights in {path} take images of {channels} channels, whose mean and standard deviation are not "
            "known without a run; use --save"
        )
    return spec.mean, spec.std, False


def _class_names(
    path: Path, num_classes: int, recorded: dict[str, Any], *, dataset: str, data: Path | None
) -> tuple[str, ...]:
    """Return the names of the classes: for a folder those that it has, or the file records, or else numbers.

    Raises:
        UserError: If the data set has other classes than the file records, or another number of them.
    """
    from data.folder import class_names

    try:
        of_file = texts(recorded, "classes")
    except ValueError:  # other programs may use the same word for something else
        of_file = ()
    is_recorded = len(of_file) == num_classes
    if dataset == "folder":
        names = class_names(data) if data else of_file if is_recorded else tuple(map(str, range(num_classes)))
        if is_recorded and names != of_file:
            raise UserError(f"the classes in --data {data} are not those of the weights in {path}")
    else:
        names = CLASS_NAMES[dataset]
    if len(names) != num_classes:
        where = f"--data {data}" if dataset == "folder" else f"--dataset {dataset}"
        raise UserError(f"the weights in {path} are for {num_classes:,} classes, but {where} has {len(names):,}")
    return names


def _recorded_values(path: Path) -> dict[str, Any]:
    """Return the values that the command export writes beside weights in safetensors; none for other files."""
    content = path.read_bytes()
    metadata = metadata_in(content) if is_safetensors(content[:HEAD]) else {}
    values: dict[str, Any] = {}
    for name in ("classes", "mean", "std", "image_size"):
        with suppress(ValueError, RecursionError):
            values[name] = json.loads(metadata.get(name, ""))
    return values


def _recorded_size(recorded: dict[str, Any]) -> int | None:
    size = recorded.get("image_size")
    return size if type(size) is int and 8 <= size <= 1024 else None
