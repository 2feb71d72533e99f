"""The networks that the command line builds, and the depths and growth rates that they can have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from commands.line.types import Range
from models import DEPTH_RULES, IMAGENET_NETWORKS
from train.errors import RunError, UserError

if TYPE_CHECKING:
    from models import DenseNet

LARGEST_DEPTH = 10_000


def _depths(function: str, examples: str) -> Range:
    rule = DEPTH_RULES[function]
    return Range(rule.smallest, LARGEST_DEPTH, step=rule.step, rule=f"{rule.formula} ({examples})")


# Weighted layers of the networks whose depth can be chosen.
DEPTHS = {
    "densenet_bc": _depths("densenet_bc", "10, 16, 22, 28, 34, 40, ..."),
    "densenet": _depths("densenet_plain", "7, 10, 13, ..., 40, ..."),
}
# Of all networks together; check_network checks the depth of the one that is named.
ANY_DEPTH = Range(7, LARGEST_DEPTH, rule=f"{DEPTHS['densenet_bc']}, or 3m + 4 for densenet")
NETWORKS = (*DEPTHS, *IMAGENET_NETWORKS)
# Depths in the plot of the benchmark, unless others are asked for. At the last, the naive network takes 2 to 3 GB.
PLOTTED_DEPTHS = {"densenet_bc": (40, 100, 190, 250), "densenet": (22, 40, 70, 100)}
LARGEST_SMALL_IMAGES = 64  # pixels; above, networks begin with the stem of the ImageNet networks
SMALLEST_IMAGENET_IMAGES = 64  # pixels; the last feature maps are a 32nd of it, and batch norm needs several values


@dataclass(frozen=True)
class NetworkSettings:
    """A network, as the command line describes it.

    Attributes:
        network: Its name, one of NETWORKS.
        depth: Weighted layers L.
        growth_rate: Channels k that each layer adds.
        image_size: Height and width of the images.
        drop_rate: Probability of dropout, from 0 to below 1.
        efficient: Strategy of the backward pass, as `models.DenseNet` takes it.
        drop_where: Place of dropout, as `models.DenseNet` takes it; after every convolution except the first is the
            paper's.
        in_channels: Channels of the images.
    """

    network: str
    depth: int
    growth_rate: int
    image_size: int
    drop_rate: float = 0.0
    efficient: bool | str = True
    drop_where: Literal["convolutions", "layers"] = "convolutions"
    in_channels: int = 3

    @property
    def title(self) -> str:
        """The network in words, for people."""
        name = name_of(self.network)
        return f"{name} (L={self.depth}, k={self.growth_rate})" if self.has_depth else name

    @property
    def has_depth(self) -> bool:
        """Whether the depth of the network can be chosen."""
        return self.network in DEPTHS

    @property
    def is_small(self) -> bool:
        """Whether the network begins with one 3x3 convolution, as for small images."""
        return self.has_depth and self.image_size <= LARGEST_SMALL_IMAGES

    def build(self, num_classes: int) -> "DenseNet":
        """Build the network, with fresh weights."""
        from models import densenet_bc, densenet_plain  # torch takes seconds to import

        if not self.has_depth:
            return IMAGENET_NETWORKS[self.network].build(
                num_classes,
                drop_rate=self.drop_rate,
                drop_where=self.drop_where,
                efficient=self.efficient,
                in_channels=self.in_channels,
            )
        build = {"densenet_bc": densenet_bc, "densenet": densenet_plain}[self.network]
        return build(
            self.depth,
            self.growth_rate,
            num_classes=num_classes,
            small_inputs=self.is_small,
            drop_rate=self.drop_rate,
            drop_where=self.drop_where,
            efficient=self.efficient,
            in_channels=self.in_channels,
        )


def with_flags_of_network(given: dict[str, Any]) -> dict[str, Any]:
    """Add depth and growth rate of an ImageNet network to the flags that a line names, unless it names them too."""
    network = IMAGENET_NETWORKS.get(given.get("network", ""))
    return ({"depth": network.depth, "growth_rate": network.growth_rate} if network else {}) | given


def flags_of_arguments(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return network, depth and growth_rate that stand for arguments of `DenseNet`; None if there is no such network.

    Args:
        arguments: As `models.densenet_arguments` returns them. Number of classes and kind of stem make no difference.
    """
    growth_rate, blocks = arguments["growth_rate"], arguments["block_config"]
    kind = arguments["bn_size"], arguments["compression"], arguments["num_init_features"]
    is_bc, is_plain = kind == (4, 0.5, 2 * growth_rate), kind == (None, 1, 16)
    for name, entry in IMAGENET_NETWORKS.items():
        if is_bc and not arguments["small_inputs"] and (entry.block_config, entry.growth_rate) == (blocks, growth_rate):
            return {"network": name, "depth": entry.depth, "growth_rate": growth_rate}
    if not (is_bc or is_plain) or blocks != blocks[:1] * 3:
        return None
    name, function = ("densenet_bc", "densenet_bc") if is_bc else ("densenet", "densenet_plain")
    return {"network": name, "depth": DEPTH_RULES[function].step * blocks[0] + 4, "growth_rate": growth_rate}


def network_with(
    weights: Mapping[str, Any], settings: NetworkSettings, num_classes: int, *, path: Path, misfit: str
) -> "DenseNet":
    """Build a network with weights from a file, on the CPU.

    Args:
        weights: What the file holds.
        settings: The network.
        num_classes: Number of logits.
        path: The file, for messages.
        misfit: What a message says of a file that does not fit, before the reason.

    Raises:
        UserError: If the weights do not fit.
        RunError: If they are NaN or infinite, or a variance is negative.
    """
    import torch

    from models import fitting_weights, require_finite

    with torch.device("meta"):  # where a network of any size takes no memory
        network = settings.build(num_classes)
    try:
        fitting, counters = fitting_weights(network, weights)
    except ValueError as error:
        raise UserError(f"{path} {misfit}: {error}") from error
    try:
        require_finite(fitting)
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error
    fitting |= dict.fromkeys(counters, torch.zeros((), dtype=torch.int64))
    network.to_empty(device="cpu").load_state_dict(fitting)
    return network


def check_network(network: str, *, depth: int, growth_rate: int) -> None:
    """Make sure that a network can have this depth and growth rate.

    Raises:
        UserError: If it cannot; the message names flag, value and what is allowed.
    """
    if network in DEPTHS:
        _require_depth("depth", depth, DEPTHS[network])
        return
    entry = IMAGENET_NETWORKS[network]
    for flag, given, value in (("depth", depth, entry.depth), ("growth_rate", growth_rate, entry.growth_rate)):
        if given != value:
            raise UserError(f"--{flag} is {given}, but must be {value} for --network {network}; leave it out")


def depths_of_plot(network: str, *, depths: Sequence[int] | None, is_drawn: bool) -> Sequence[int]:
    """Return the depths in the plot of the benchmark.

    Args:
        network: Name of the network.
        depths: Depths that were asked for. None: the usual ones of the network.
        is_drawn: Whether a plot was asked for.

    Raises:
        UserError: If there are depths but no plot, if the network has only one depth, or cannot have one of these.
    """
    if network not in DEPTHS and (is_drawn or depths):
        flag = "plot" if is_drawn else "depths"
        raise UserError(
            f"--{flag} is for memory against depth, but {network} has only one depth; use densenet_bc or densenet"
        )
    if depths and not is_drawn:
        raise UserError("--depths needs --plot, the file for the plot with these depths")
    if not depths:
        return PLOTTED_DEPTHS.get(network, ())
    for depth in depths:
        _require_depth("depths", depth, DEPTHS[network])
    return depths


def _require_depth(flag: str, depth: int, limits: Range) -> None:
    if depth not in limits:
        raise UserError(f"--{flag} is '{depth}', but must be a whole number, {limits}{limits.nearest(depth)}")


def image_size_of(network: str, *, dataset: str = "folder", image_size: int | None) -> int:
    """Return the height and width of the images that a network reads.

    Args:
        network: Name of the network.
        dataset: Data set of the images; only a "folder" has images of any size.
        image_size: Size that was asked for. None: the usual size of the network.

    Raises:
        UserError: If the data set has no images of that size, or the network needs larger ones.
    """
    is_imagenet = network not in DEPTHS
    size = image_size or (224 if is_imagenet and dataset == "folder" else 32)
    if dataset != "folder" and size != 32:
        raise UserError(f"--image_size is {size}, but images of --dataset {dataset} are 32; only those of folder vary")
    if is_imagenet and size < SMALLEST_IMAGENET_IMAGES:
        given = f"--image_size is {size}" if dataset == "folder" else f"those of --dataset {dataset} are {size}"
        raise UserError(
            f"--network {network} needs images of {SMALLEST_IMAGENET_IMAGES} pixels or more, but {given}; "
            "densenet_bc and densenet read smaller ones"
        )
    return size


def name_of(network: str) -> str:
    """A network's name as papers write it: DenseNet-BC, DenseNet, DenseNet-121."""
    names = {"densenet_bc": "DenseNet-BC", "densenet": "DenseNet"}
    return names.get(network) or network.replace("densenet", "DenseNet-")
