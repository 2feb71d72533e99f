"""The help page of a command, from its settings class and the docstring of its function."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from commands.line.flags import Command, Flag
from commands.line.types import describe
from train.program_name import PYTHON_WORDS
from train.terminal import width

NO_TEXT = "(Its text is missing: python -OO leaves it out, and the source is not at hand.)"


def help_page(command: Command[Any], *, name: str) -> list[str]:
    """Lines about the purpose of a command and the values of each flag, as wide as the terminal.

    Fire's own page cuts types off at 80 columns and puts each description on one line of any length.

    Args:
        command: Command whose function has a docstring.
        name: Name of the program.
    """
    flags = command.settings.flags().values()
    summary, _, description = docstring_of(command.run).partition("\n")
    loose = [f"{flag.name.upper()} ..." for flag in flags if flag.takes_words]
    needed = [f"--{flag.name} {flag.name.upper()}" for flag in flags if flag.is_required and not flag.takes_words]
    start = " ".join([*PYTHON_WORDS[:-1], name])
    usage = " ".join([start, *loose, *needed, "[--flag value ...]"])
    lines = ["NAME", *_indented(f"{name} - {summary.rstrip('.')}", 4)]
    lines += ["", "USAGE", *_indented(usage, 4), *_indented(f"{start} --help | --version", 4)]
    lines += ["", "DESCRIPTION"]
    for paragraph in filter(None, description.strip().split("\n\n")):
        lines += [*([""] if lines[-1] != "DESCRIPTION" else []), *_indented(paragraph, 4)]
    for flag in flags:
        if flag.takes_words:
            lines += ["", "WORDS", f"    {flag.name.upper()} ...", *_indented(flag.help, 8)]
            lines += _indented(f"Required. Takes {describe(flag.annotation.__args__[0])}, one or more.", 8)
    lines += ["", "FLAGS"]
    for flag in flags:
        if not flag.takes_words:
            lines += [f"    --{flag.name}={flag.name.upper()}", *_indented(flag.help, 8), *_indented(_takes(flag), 8)]
    return lines


def docstring_of(function: Callable[..., Any]) -> str:
    """The docstring of a function, from its source file where python -OO has left it out."""
    if text := inspect.getdoc(function):
        return text
    with suppress(OSError, SyntaxError):
        definition = ast.parse(inspect.getsource(function)).body[0]
        if isinstance(definition, ast.FunctionDef):
            return ast.get_docstring(definition) or NO_TEXT
    return NO_TEXT


def commands_page(commands: Mapping[str, Command[Any]]) -> list[str]:
    """The lines below a help page that name all commands, the first of which needs no word; none if there are none."""
    lines = ["", "COMMANDS"] if commands else []
    for i, (word, command) in enumerate(commands.items()):
        meaning = f"{docstring_of(command.run).splitlines()[0]} {'The word may be left out.' if i == 0 else ''}"
        lines += [f"    {word} [--help]", *_indented(meaning, 8)]
    return lines


def _takes(flag: Flag) -> str:
    default = flag.default
    typed = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{'Required.' if flag.is_required else f'Default {typed}.'} Takes {describe(flag.annotation)}."


def _indented(text: str, columns: int) -> list[str]:
    margin = " " * columns
    text = " ".join(text.split())
    return textwrap.wrap(text, width(), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
