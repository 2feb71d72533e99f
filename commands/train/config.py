"""config.json of a run: settings, classes and normalisation, command line, and versions of code and packages."""

from typing import Any

from torch import nn

from commands.provenance import VERSION, command_line, git_revision, versions
from commands.recipes import altered_flags
from commands.settings import TrainSettings
from data.datasets import DatasetSpec
from data.splits import Dataset


def config_of(
    settings: TrainSettings, network: nn.Module, source: Dataset, spec: DatasetSpec, *, device: str
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        settings: Settings of the run, with everything that the program has chosen.
        network: Network that is trained.
        source: Data set that it is trained on.
        spec: How its images are prepared.
        device: Description of the device.
    """
    flags = settings.plain()
    return {
        "flags": flags,
        **({"recipe_altered": altered_flags(flags)} if settings.recipe else {}),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "classes": source.classes,
        "images": source.sizes(held_out=settings.valid_size or 0),
        "mean": spec.mean,
        "std": spec.std,
        "device": device,
        "versions": versions(),
        "version": VERSION,
        "git_revision": git_revision(),
        "command_line": command_line(),
    }
