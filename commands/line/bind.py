"""The command line: every word of it is bound and checked by Fire before anything runs.

`fire.Fire(f)` on its own calls f first and complains of a mistyped flag afterwards, guesses types from the look of a
value, and drops what follows ` -- `. Here Fire binds a stand-in that only records its keywords, with a parser for
each flag that the annotation in the signature names.
"""

import contextlib
import functools
import inspect
import io
import re
import typing
from collections.abc import Callable, Mapping
from reprlib import repr as short_repr
from typing import Any, NoReturn

import fire
from fire.core import FireError, FireExit
from fire.decorators import SetParseFns

from commands.line.help import commands_page, help_page
from commands.line.synonyms import hint
from commands.line.types import describe, did_you_mean, is_switch, parse
from train.terminal import say, say_error

HELP_WORDS = ("--help", "-h")
VERSION_WORD = "--version"
END_OF_FLAGS = "--"

Commands = Mapping[str, Callable[..., Any]]


def choose(commands: Commands, argv: list[str], *, name: str) -> tuple[str, list[str]]:
    """Split a command line into its command and the words behind it. A line without one means the first command.

    A word that is no command ends the program with one line on stderr and exit code 2.

    Args:
        commands: Functions by the word that stands for them.
        argv: The words behind the program's name.
        name: The program's name in messages.
    """
    default = next(iter(commands))
    if not argv or argv[0].startswith("-"):
        return default, argv
    word, *others = argv
    if word not in commands:
        hint = did_you_mean(word, commands) or f"; the commands are {', '.join(commands)}"
        end(f"error: unknown command {word!r}{hint}", name=name)
    return word, others


def bind(
    function: Callable[..., Any],
    argv: list[str],
    *,
    name: str,
    commands: Commands | None = None,
    version: Callable[[], str] = str,
) -> dict[str, Any]:
    """Return the flags that a command line names, as typed and checked values; defaults are left out.

    Prints the help or the version on stdout and exits with 0 if the line asks for it. A line that cannot be used ends
    with one line on stderr and exit code 2. `function` itself is never called.

    Args:
        function: Keyword-only parameters are the flags. Annotations bool, int, float, Path, Literal, each possibly
            with None, `Annotated[..., Range(...)]`, and `tuple[one of these, ...]` choose how a value is read. A
            parameter `*names: Path` takes the words that belong to no flag, at least one, and all words after "--".
        argv: The words behind the program's name and command.
        name: The program's name in messages, with its command if that was given.
        commands: All commands, for the help.
        version: Says which version the program is of.
    """
    words, flags = parameters_of(function)
    asked = set(argv[: argv.index(END_OF_FLAGS)] if END_OF_FLAGS in argv else argv)
    if not asked.isdisjoint(HELP_WORDS):
        say(*help_page(function, words, flags, name=name), *commands_page(commands or {}))
        raise SystemExit(0)
    if VERSION_WORD in asked:
        say(version())
        raise SystemExit(0)
    try:
        values, loose = _split_words(argv, flags, takes_words=bool(words))
        bound = _bind_words(words, loose, flags)
        _require_all(function, flags, values)
        line = [f"--{flag}={value}" for flag, value in values.items()]
        return bound | _fire(_recorder(function, flags), line, name)
    except FireError as error:
        end(f"error: {error}", name=name)


def call(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Call a command with what `bind` returned."""
    words, _ = parameters_of(function)
    flags = {name: value for name, value in given.items() if name not in words}
    function(*(word for name in words for word in given[name]), **flags)


def checked(function: Callable[..., Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags that a file recorded as typed and checked values, as if they were typed on a command line.

    Args:
        function: As for `bind`.
        recorded: Plain values by flag.

    Raises:
        FireError: If there is no such flag, or it takes no such value.
    """
    _, flags = parameters_of(function)
    for flag in recorded:
        if flag not in flags:
            raise FireError(f"unknown flag {short_repr(flag)}{did_you_mean(flag, flags, '--')}")
    return {flag: parse(flag, flags[flag], str(value)) for flag, value in recorded.items()}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of all flags that have one."""
    parameters = inspect.signature(function).parameters.items()
    return {flag: known.default for flag, known in parameters if known.default is not inspect.Parameter.empty}


def end(message: str, *, name: str, exit_code: int = 2, is_heard: bool = True) -> NoReturn:
    """End the program with one line on stderr, if this is the process that prints it."""
    if is_heard:
        say_error(f"{name}: {message}")
    raise SystemExit(exit_code)


def parameters_of(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Annotations by name: of the parameter that takes words, if there is one, and of the flags."""
    annotations = typing.get_type_hints(function, include_extras=True)
    words, flags = {}, {}
    for name, parameter in inspect.signature(function).parameters.items():
        group = words if parameter.kind is inspect.Parameter.VAR_POSITIONAL else flags
        group[name] = annotations[name]
    return words, flags


def _bind_words(words: dict[str, Any], loose: list[str], flags: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Read the words that belong to no flag.

    Raises:
        FireError: If there are some and the command takes none, or the other way round.
    """
    if loose and not words:
        raise FireError(f"stray word {loose[0]!r}: values belong behind a flag, as in --{next(iter(flags))} VALUE")
    for name, annotation in words.items():
        if not loose:
            raise FireError(f"{name.upper()} is needed: {describe(annotation)}, one or more; see --help")
        return {name: tuple(parse(name.upper(), annotation, word) for word in loose)}
    return {}


def _recorder(function: Callable[..., Any], flags: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function with the flags of `function` that returns the keywords it is called with."""

    def record(**given: Any) -> dict[str, Any]:
        return given

    signature = inspect.signature(function)
    record.__signature__ = signature.replace(parameters=[signature.parameters[flag] for flag in flags])
    parsers = {flag: functools.partial(parse, flag, annotation) for flag, annotation in flags.items()}
    return SetParseFns(**parsers)(record)


def _fire(recorder: Callable[..., dict[str, Any]], words: list[str], name: str) -> dict[str, Any]:
    """Let Fire bind the words. Its page-long complaint becomes one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return fire.Fire(recorder, command=words, name=name, serialize=lambda given: None)
    except FireExit as error:
        raise FireError(error.trace.elements[-1].ErrorAsStr()) from None


def _split_words(argv: list[str], flags: dict[str, Any], *, takes_words: bool) -> tuple[dict[str, str], list[str]]:
    """Pair the flags of a line with the text of their values, so that Fire can read `--flag=value` in one way only.

    Returns:
        The pairs, and the words that are neither flag nor value.

    Raises:
        FireError: For a missing value, a flag given twice or one that does not exist.
    """
    values: dict[str, str] = {}
    loose: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == END_OF_FLAGS:
            if takes_words:
                return values, loose + words
            raise FireError(f"'--' ends the flags, and what follows would be ignored: {' '.join(words) or 'nothing'}")
        if not _looks_like_flag(word):
            loose.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        flag, negated = _find_flag(key, flags)
        if flag is None or not word.startswith("--"):
            raise FireError(f"unknown flag {word.partition('=')[0]!r}{_what_was_meant(word, key, flags, takes_words)}")
        if equals and negated:
            raise FireError(f"--{key} takes no value; write --{flag}=True or --{flag}=False")
        if not equals:
            value = _value_of(flag, flags[flag], negated, words)
        if flag in values:
            raise FireError(f"--{flag} is given twice: {values[flag]!r} and {value!r}")
        values[flag] = value
    return values, loose


def _what_was_meant(word: str, key: str, flags: dict[str, Any], takes_words: bool) -> str:
    """The hint that follows an unknown flag: a flag of another name, or how to write such a word that is no flag."""
    known = hint(key.lower().replace("-", "_"), flags) or did_you_mean(key, flags, "--")
    may_be_file = takes_words and not word.startswith("--")
    return known or (f"; write ./{word} if it is a file, or put -- before all files" if may_be_file else "")


def _looks_like_flag(word: str) -> bool:
    return re.match(r"--?[^\W\d]", word) is not None


def _value_of(flag: str, annotation: Any, negated: bool, words: list[str]) -> str:
    """The value of a flag without "=": taken from the front of `words`, or what a bare flag means."""
    if not negated and words and words[0] != END_OF_FLAGS and not _looks_like_flag(words[0]):
        return words.pop(0)
    if is_switch(annotation):
        return str(not negated)
    raise FireError(f"--{flag} needs a value: {describe(annotation)}")


def _find_flag(key: str, flags: dict[str, Any]) -> tuple[str | None, bool]:
    """The flag that a word names, and whether it is switched off as in `--no-efficient`."""
    flag = key.replace("-", "_")
    if flag in flags:
        return flag, False
    positive = re.sub(r"^no_?", "", flag)
    if positive != flag and positive in flags and is_switch(flags[positive]):
        return positive, True
    return None, False


def _require_all(function: Callable[..., Any], flags: dict[str, Any], values: dict[str, str]) -> None:
    parameters = inspect.signature(function).parameters
    for flag in flags:
        if parameters[flag].default is inspect.Parameter.empty and flag not in values:
            raise FireError(f"--{flag} is needed; see --help")
