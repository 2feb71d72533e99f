"""The weights that a run starts from, where --init_weights names a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from commands.settings import TrainSettings
from models import DenseNet, fitting_weights, input_channels, load_weights, require_finite, weight_places
from train.errors import UserError
from train.run.legacy_weights import load_legacy_weights


def read_initial_weights(settings: TrainSettings) -> dict[str, Any] | None:
    """Read the weights of the file, and make sure that they fit the network of the run.

    The classifier may be for other classes, and the first convolution for images with another number of channels.

    Returns:
        The weights, or None if no file is named.

    Raises:
        UserError: If they are of another network, are not finite, or cannot be read.
    """
    if settings.init_weights is None:
        return None
    try:
        weights = load_legacy_weights(settings.init_weights)
        with torch.device("meta"):  # where a network of any size takes no memory
            network = settings.network_settings.build(num_classes=1)
        require_finite(fitting_weights(network, weights, replace_classifier=True, adapt_input=True)[0])
    except (ValueError, UserError) as error:
        raise UserError(f"--init_weights {settings.init_weights} cannot be used: {error}") from error
    return weights


def load_initial_weights(path: Path, weights: Mapping[str, Any], network: DenseNet) -> str:
    """Load the weights of a file into a network, and return a line for the user."""
    left_out = load_weights(network, weights, replace_classifier=True, adapt_input=True)
    taken, *others = (repr(place) for place in weight_places(network, weights))
    where = f" ({taken}, not {' or '.join(others)})" if others else ""
    replaced = any(name.startswith("classifier") for name in left_out)
    line = f"Beginning with the weights in {path}{where}" + (" and a new classifier" if replaced else "")
    return line + _describe_adapted(input_channels(network, weights), network.in_channels)


def _describe_adapted(old: int, new: int) -> str:
    """Say how the first convolution got its number of input channels; empty if that is the file's."""
    if old == new:
        return ""
    how = "their sum" if new == 1 else f"taken in turn, times {old}/{new}"
    become = "input channel becomes" if old == 1 else "input channels become"
    return f"; in the first convolution, {old} {become} {new} ({how})"
