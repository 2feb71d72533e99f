"""The help page of a command, from its signature and its docstring."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fire import docstrings

from commands.line.types import describe
from train.terminal import width

NO_TEXT = "(Its text is missing: python -OO leaves it out, and the source is not at hand.)"


def help_page(function: Callable[..., Any], words: dict[str, Any], flags: dict[str, Any], *, name: str) -> list[str]:
    """Lines that say what a command does and what each flag takes, as wide as the terminal.

    Fire's own page cuts types off at 80 columns and puts each description on one line of any length.

    Args:
        function: Has a docstring in Google style with all flags under "Args:".
        words: Annotation of the parameter that takes words, by its name; may be empty.
        flags: Annotation of each flag.
        name: The program's name.
    """
    documented = docstrings.parse(docstring_of(function))
    meanings = {argument.name: argument.description for argument in documented.args or ()}
    parameters = inspect.signature(function).parameters
    required = [flag for flag in flags if parameters[flag].default is inspect.Parameter.empty]
    loose = [f"{word.upper()} ..." for word in words]
    needed = [f"--{flag} {flag.upper()}" for flag in required]
    usage = " ".join(["python", name, *loose, *needed, "[--flag value ...]"])
    lines = ["NAME", *_indented(f"{name} - {documented.summary}", 4)]
    lines += ["", "USAGE", *_indented(usage, 4), *_indented(f"python {name} --help | --version", 4)]
    lines += ["", "DESCRIPTION", *_indented(documented.description or "", 4)]
    for word, annotation in words.items():
        lines += ["", "WORDS", f"    {word.upper()} ..."]
        lines += _indented(meanings.get(word, ""), 8)
        lines += _indented(f"Required. Takes {describe(annotation)}, one or more.", 8)
    lines += ["", "FLAGS"]
    for flag, annotation in flags.items():
        default = "Required." if flag in required else f"Default {_as_typed(parameters[flag].default)}."
        lines.append(f"    --{flag}={flag.upper()}")
        lines += _indented(meanings.get(flag, ""), 8)
        lines += _indented(f"{default} Takes {describe(annotation)}.", 8)
    return lines


def docstring_of(function: Callable[..., Any]) -> str:
    """The docstring of a function, from its source file where python -OO has left it out."""
    if function.__doc__:
        return inspect.getdoc(function)
    with suppress(OSError, SyntaxError):
        return ast.get_docstring(ast.parse(inspect.getsource(function)).body[0]) or NO_TEXT
    return NO_TEXT


def commands_page(commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The lines below a help page that name all commands, the first of which needs no word; none if there are none."""
    lines = ["", "COMMANDS"] if commands else []
    for i, (word, function) in enumerate(commands.items()):
        meaning = f"{docstring_of(function).splitlines()[0]} {'The word may be left out.' if i == 0 else ''}"
        lines += [f"    {word} [--help]", *_indented(meaning, 8)]
    return lines


def _as_typed(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _indented(text: str, columns: int) -> list[str]:
    margin = " " * columns
    text = " ".join(text.split())  # paragraphs are joined by more than one space
    return textwrap.wrap(text, width(), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
