"""Read a command line into the settings of a command, and find the words with which the program ends."""

import shlex
import traceback
from collections.abc import Mapping
from typing import Any

from commands.line.bind import bind
from commands.line.flags import Command, Settings
from commands.outputs import require_working_directory
from commands.provenance import version_line
from commands.settings import TrainSettings
from commands.train.seeds import runs_of, words_of_seeds
from train.errors import UserError
from train.processes import current_group, is_launched, starting_words
from train.program_name import NAME
from train.run.config import CONFIG
from train.terminal import say_error


def read_settings(
    command: Command[Any], words: list[str], *, name: str, commands: Mapping[str, Command[Any]]
) -> Settings:
    """Read the settings of a command from the words of its line.

    Prints the help or the version and exits with 0 if the line asks for it; a line that cannot be used ends with one
    line on stderr and exit code 2.

    Args:
        command: Command of the line.
        words: Words after it.
        name: Name of the program in messages, with the command if that was given.
        commands: All commands, for the help page.

    Raises:
        UserError: If torchrun has started the program for a command that works in one process, the working directory
            is gone, or the flags of a run that is to be resumed cannot be read.
    """
    given = bind(command, words, name=name, commands=commands, version=lambda: version_line(NAME))
    require_working_directory()
    if is_launched() and not command.in_processes:
        raise UserError(f"torchrun is for training; start {name.removeprefix(NAME).strip()} without it")
    return command.settings(**command.complete(given))


def is_heard(error: Exception) -> bool:
    """Whether this process prints an error: the main process always, another one if the error is its own alone."""
    is_of_all = isinstance(error, UserError) or getattr(error, "in_all_processes", False)
    return current_group().is_main or not is_of_all


def how_to_continue(settings: TrainSettings | None) -> str:
    """The command line that continues a run that was stopped."""
    if settings is None or not any((run.save / CONFIG).exists() for run in runs_of(settings)):
        return "the run has written nothing"
    line = shlex.join([*starting_words(), f"--save={settings.save}", *words_of_seeds(settings), "--resume=True"])
    return f"{settings.save} holds all that was trained; to go on: {line}"


def say_traceback() -> None:
    """Print the traceback of the error that is being handled, on stderr."""
    say_error(*traceback.format_exc().rstrip("\n").split("\n"))
