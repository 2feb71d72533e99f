"""The networks that the command line builds, and what their depth and growth rate can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.line.types import Range
from commands.tables import plain
from train.errors import UserError

# Weighted layers of the networks whose depth can be chosen. Three equal blocks of m layers; a bottleneck layer has two
# convolutions, a plain one has one. First convolution, two transitions and the classifier make 4.
DEPTHS = {
    "densenet_bc": Range(10, 10_000, step=6, rule="6m + 4 with m >= 1 (10, 16, 22, 28, 34, 40, ...)"),
    "densenet": Range(7, 10_000, step=3, rule="3m + 4 with m >= 1 (7, 10, 13, ..., 40, ...)"),
}
# Depths in the picture of the benchmark, unless others are asked for. The naive network takes 2 to 3 GB at the last.
PLOTTED_DEPTHS = {"densenet_bc": (40, 100, 190, 250), "densenet": (22, 40, 70, 100)}
LARGEST_SMALL_IMAGES = 64  # pixels; above, networks begin as those for ImageNet do
SMALLEST_IMAGENET_IMAGES = 64  # pixels; the last maps are a 32nd of it, and batch norm needs several values


@dataclass(frozen=True)
class Fixed:
    """A network whose depth and growth rate belong to its name."""

    depth: int
    growth_rate: int


FIXED = {
    "densenet121": Fixed(121, 32),
    "densenet169": Fixed(169, 32),
    "densenet201": Fixed(201, 32),
    "densenet161": Fixed(161, 48),
    "densenet264": Fixed(264, 32),
}


def flags_of_network(network: str) -> dict[str, Any]:
    """The flags that a network's name decides."""
    if network not in FIXED:
        return {}
    return {"depth": FIXED[network].depth, "growth_rate": FIXED[network].growth_rate}


def check_network(network: str, *, depth: int, growth_rate: int) -> None:
    """Make sure that there is such a network.

    Raises:
        UserError: If not; the message names flag, value and what is allowed.
    """
    for flag, value in flags_of_network(network).items():
        given = {"depth": depth, "growth_rate": growth_rate}[flag]
        if given != value:
            raise UserError(f"--{flag} is {given}, but must be {value} for --network {network}; leave it out")
    if network in DEPTHS:
        _require_depth("depth", depth, DEPTHS[network])


def depths_of_plot(network: str, *, depths: Sequence[int] | None, is_drawn: bool) -> Sequence[int]:
    """The depths in the picture of the benchmark; None: what is usual for the network.

    Args:
        network: Its name.
        depths: Those that were asked for.
        is_drawn: Whether a picture was asked for.

    Raises:
        UserError: If there is no picture, or no such network.
    """
    if network in FIXED and (is_drawn or depths):
        flag = "plot" if is_drawn else "depths"
        raise UserError(
            f"--{flag} is of memory against depth, but {network} has one depth; it is for densenet_bc and densenet"
        )
    if depths and not is_drawn:
        raise UserError("--depths are those in the picture; it needs --plot, the file to draw it into")
    for depth in depths or ():
        _require_depth("depths", depth, DEPTHS[network])
    return depths or PLOTTED_DEPTHS.get(network, ())


def _require_depth(flag: str, depth: int, limits: Range) -> None:
    if depth not in limits:
        raise UserError(f"--{flag} is '{depth}', but must be a whole number, {limits}{limits.nearest(depth)}")


def image_size_of(network: str, *, dataset: str = "folder", image_size: int | None) -> int:
    """Height and width of the images that a network reads; None: what is usual for it.

    Args:
        network: Its name.
        dataset: Where they come from; only a "folder" has images of any size.
        image_size: What was asked for.

    Raises:
        UserError: If the data set has no images of that size, or the network needs larger ones.
    """
    size = image_size or (224 if network in FIXED and dataset == "folder" else 32)
    if dataset != "folder" and size != 32:
        raise UserError(f"--image_size is {size}, but images of --dataset {dataset} are 32; only those of folder vary")
    if network in FIXED and size < SMALLEST_IMAGENET_IMAGES:
        given = f"--image_size is {size}" if dataset == "folder" else f"those of --dataset {dataset} are {size}"
        raise UserError(
            f"--network {network} needs images of {SMALLEST_IMAGENET_IMAGES} pixels or more, but {given}; "
            "densenet_bc and densenet read smaller ones"
        )
    return size


def title_of(flags: Mapping[str, Any]) -> str:
    """The network of a run and what it is trained on, in words, for people."""
    of_folder = flags["dataset"] == "folder" and flags["data"]
    images = f"folder {plain(Path(flags['data']).absolute().name)}" if of_folder else flags["dataset"]
    return f"{network_title(flags)} on {images}"


def network_title(flags: Mapping[str, Any]) -> str:
    """A network in words, for people."""
    name = name_of(flags["network"])
    return name if flags["network"] in FIXED else f"{name} (L={flags['depth']}, k={flags['growth_rate']})"


def name_of(network: str) -> str:
    """A network's name as papers write it: DenseNet-BC, DenseNet, DenseNet-121."""
    names = {"densenet_bc": "DenseNet-BC", "densenet": "DenseNet"}
    return names.get(network) or network.replace("densenet", "DenseNet-")
