"""Flags that other flags stand for: those of a recipe, an ImageNet network, another run, or the run that is resumed."""

from pathlib import Path
from typing import Any

from fire.core import FireError

from commands.line.flags import Role, parse_recorded
from commands.networks import with_flags_of_network
from commands.recipes import flags_of_recipe
from commands.settings import TrainSettings
from commands.train.seeds import folder_to_continue, require_seeds
from train.errors import UserError
from train.run.acquire import without_links
from train.run.config import CONFIG, read_config_file, recorded_flags


def complete(given: dict[str, Any]) -> dict[str, Any]:
    """Add the flags that others stand for to those that a command line names, which take precedence.

    Args:
        given: Typed and checked values by name.

    Raises:
        UserError: If --config or the run that is to be resumed cannot be read, or --seeds cannot be used.
    """
    given = with_flags_of_network(given) | {"save": without_links(given["save"])}
    has_seeds = given.get("seeds") is not None
    if has_seeds:
        require_seeds(given["seeds"], seed=given.get("seed"))
    if config := given.pop("config", None):
        given = _flags_of_config(config) | _flags_of_recipe(given) | given
    if given.get("resume"):
        of_run = _flags_of_run(folder_to_continue(given))
        open_flags = {name for name in TrainSettings.names(Role.CHOSEN) if given.get(name) is None}
        given |= {name: value for name, value in of_run.items() if name not in given or name in open_flags}
    if has_seeds:
        given["seed"] = None  # and not that of the run whose other flags are taken
    return _flags_of_recipe(given) | given


def _flags_of_recipe(given: dict[str, Any]) -> dict[str, Any]:
    return flags_of_recipe(given["recipe"]) if given.get("recipe") else {}


def _flags_of_config(path: Path) -> dict[str, Any]:
    """The flags in config.json of another run, without those that say where its files are and what it shows."""
    config = read_config_file(path)
    if config is None:
        raise UserError(f"--config {path} does not exist")
    own = TrainSettings.names(Role.FREE) & TrainSettings.names(Role.NOT_COMPARED)
    try:
        flags = parse_recorded(TrainSettings, config["flags"])
    except FireError as error:
        raise UserError(f"--config {path} cannot be used: {error}") from error
    return with_flags_of_network({name: value for name, value in flags.items() if name not in own})


def _flags_of_run(folder: Path) -> dict[str, Any]:
    """All flags of the run in a folder, none if there is no run. Flags that it does not record have their defaults."""
    recorded = recorded_flags(folder)
    try:
        return TrainSettings.defaults() | parse_recorded(TrainSettings, recorded) if recorded else {}
    except FireError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error
