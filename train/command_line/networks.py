"""The networks that the command line builds, and what their depth and growth rate can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.command_line.flag_types import Range
from train.errors import UserError

# Weighted layers of the networks whose depth can be chosen. Three equal blocks of m layers; a bottleneck layer has two
# convolutions, a plain one has one. First convolution, two transitions and the classifier make 4.
DEPTHS = {
    "densenet_bc": Range(10, 10_000, step=6, rule="6m + 4 with m >= 1 (10, 16, 22, 28, 34, 40, ...)"),
    "densenet": Range(7, 10_000, step=3, rule="3m + 4 with m >= 1 (7, 10, 13, ..., 40, ...)"),
}
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
    limits = DEPTHS.get(network)
    if limits and depth not in limits:
        raise UserError(f"--depth is '{depth}', but must be a whole number, {limits}{limits.nearest(depth)}")


def image_size_of(network: str, *, dataset: str, image_size: int | None) -> int:
    """Height and width of the images that a network reads; None: what is usual for it.

    Raises:
        UserError: If the data set has no images of that size, or the network needs larger ones.
    """
    size = image_size or (224 if network in FIXED and dataset == "folder" else 32)
    if dataset != "folder" and size != 32:
        raise UserError(f"--image_size is {size}, but images of --dataset {dataset} are 32; only those of folder vary")
    if network in FIXED and size < SMALLEST_IMAGENET_IMAGES:
        raise UserError(
            f"--network {network} needs images of {SMALLEST_IMAGENET_IMAGES} pixels or more, but those of "
            f"--dataset {dataset} are {size}; densenet_bc and densenet read smaller ones"
        )
    return size


def title_of(flags: Mapping[str, Any]) -> str:
    """The network of a run and what it is trained on, in words, for people."""
    of_folder = flags["dataset"] == "folder" and flags["data"]
    images = f"folder {Path(flags['data']).absolute().name}" if of_folder else flags["dataset"]
    if flags["network"] in FIXED:
        return f"{flags['network'].replace('densenet', 'DenseNet-')} on {images}"
    name = {"densenet_bc": "DenseNet-BC", "densenet": "DenseNet"}[flags["network"]]
    return f"{name} (L={flags['depth']}, k={flags['growth_rate']}) on {images}"
