"""The help page of a command, from its signature and its docstring."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from fire import docstrings

from train.command_line.flag_types import describe

WIDTH = 100  # columns


def help_page(function: Callable[..., Any], words: dict[str, Any], flags: dict[str, Any], *, name: str) -> str:
    """Lay out what a command does and what each flag takes.

    Fire's own page cuts types off at 80 columns and puts each description on one line of any length.

    Args:
        function: Has a docstring in Google style with all flags under "Args:".
        words: Annotation of the parameter that takes words, by its name; may be empty.
        flags: Annotation of each flag.
        name: The program's name.
    """
    documented = docstrings.parse(inspect.getdoc(function))
    meanings = {argument.name: argument.description for argument in documented.args}
    parameters = inspect.signature(function).parameters
    required = [flag for flag in flags if parameters[flag].default is inspect.Parameter.empty]
    loose = [f"{word.upper()} ..." for word in words]
    needed = [f"--{flag} {flag.upper()}" for flag in required]
    usage = " ".join(["python", name, *loose, *needed, "[--flag value ...]"])
    lines = ["NAME", *_indented(f"{name} - {documented.summary}", 4)]
    lines += ["", "USAGE", *_indented(usage, 4), "", "DESCRIPTION", *_indented(documented.description, 4)]
    for word, annotation in words.items():
        lines += ["", "WORDS", f"    {word.upper()} ..."]
        lines += _indented(meanings[word], 8)
        lines += _indented(f"Required. Takes {describe(annotation)}, one or more.", 8)
    lines += ["", "FLAGS"]
    for flag, annotation in flags.items():
        default = "Required." if flag in required else f"Default {_as_typed(parameters[flag].default)}."
        lines.append(f"    --{flag}={flag.upper()}")
        lines += _indented(meanings[flag], 8)
        lines += _indented(f"{default} Takes {describe(annotation)}.", 8)
    return "\n".join(lines)


def commands_page(commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The lines below a help page that name all commands, the first of which needs no word; none if there are none."""
    lines = ["", "COMMANDS"] if commands else []
    for i, (word, function) in enumerate(commands.items()):
        meaning = f"{inspect.getdoc(function).splitlines()[0]} {'The word may be left out.' if i == 0 else ''}"
        lines += [f"    {word} [--help]", *_indented(meaning, 8)]
    return lines


def _as_typed(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _indented(text: str, columns: int) -> list[str]:
    margin = " " * columns
    text = " ".join(text.split())  # paragraphs are joined by more than one space
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
