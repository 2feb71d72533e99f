"""DenseNets in plain PyTorch: this folder imports torch only and can be copied into another project.

torch is imported when a name is first used, so that a program that only lists the networks starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .depths import DEPTH_RULES
from .imagenet import IMAGENET_NETWORKS

if TYPE_CHECKING:
    from .densenet import DROP_PLACES, STRATEGIES, DenseNet, densenet_bc, densenet_plain
    from .weights import (
        densenet_arguments,
        fitting_weights,
        input_channels,
        load_weights,
        require_finite,
        torchvision_names,
        weight_places,
    )

__all__ = [
    "DEPTH_RULES",
    "DROP_PLACES",
    "IMAGENET_NETWORKS",
    "STRATEGIES",
    "DenseNet",
    "densenet_arguments",
    "densenet_bc",
    "densenet_plain",
    "fitting_weights",
    "input_channels",
    "load_weights",
    "require_finite",
    "torchvision_names",
    "weight_places",
]
__all__ += IMAGENET_NETWORKS  # each name is a function that builds the network: densenet121(num_classes=1000, ...)


def __getattr__(name: str) -> Any:
    if name in IMAGENET_NETWORKS:
        return IMAGENET_NETWORKS[name].build
    if not name.startswith("_"):
        modules = [import_module(f".{module}", __name__) for module in ("densenet", "weights")]
        for names in (globals(), *map(vars, modules)):  # the first holds submodules that are imported by now
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
