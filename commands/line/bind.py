"""The command line: every word of it is bound and checked before anything runs.

`fire.Fire(f)` on its own calls f first and complains of a mistyped flag afterwards, guesses types from the look of a
value, and drops what follows ` -- `. Here Fire binds a function that only records its keywords: the line is split into
`--flag=value` beforehand, Fire matches these with the flags of a settings class, and calls for each value the parser of
its field.
"""

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import fire
from fire.core import FireError, FireExit
from fire.decorators import SetParseFns

from commands.line.flags import Command, Flag
from commands.line.help import commands_page, help_page
from commands.line.synonyms import hint
from commands.line.types import describe, did_you_mean, is_switch, parse
from train.terminal import say, say_error

HELP_WORDS = ("--help", "-h")
VERSION_WORD = "--version"
END_OF_FLAGS = "--"

Commands = Mapping[str, Command[Any]]
Flags = Mapping[str, Flag]


def choose(commands: Commands, argv: list[str], *, name: str) -> tuple[str, list[str]]:
    """Split a command line into its command and the words after it. A line without one means the first command.

    A word that is no command ends the program with one line on stderr and exit code 2.

    Args:
        commands: Commands by the word that stands for them.
        argv: Words after the program's name.
        name: Name of the program in messages.
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
    command: Command[Any],
    argv: list[str],
    *,
    name: str,
    commands: Commands | None = None,
    version: Callable[[], str] = str,
) -> dict[str, Any]:
    """Return the flags that a command line names, as typed and checked values by name; defaults are left out.

    Prints the help or the version on stdout and exits with 0 if the line asks for it. A line that cannot be used ends
    with one line on stderr and exit code 2. Nothing runs.

    Args:
        command: Command whose settings class has the flags. A field that takes words gets those that belong to no
            flag, at least one, and all words after "--".
        argv: Words after the program's name and the command.
        name: Name of the program in messages, with the command if that was given.
        commands: All commands, for the help page.
        version: Returns the version of the program.
    """
    fields = command.settings.flags()
    words = next((field for field in fields.values() if field.takes_words), None)
    flags = {name: field for name, field in fields.items() if not field.takes_words}
    asked = set(argv[: argv.index(END_OF_FLAGS)] if END_OF_FLAGS in argv else argv)
    if not asked.isdisjoint(HELP_WORDS):
        say(*help_page(command, name=name), *commands_page(commands or {}))
        raise SystemExit(0)
    if VERSION_WORD in asked:
        say(version())
        raise SystemExit(0)
    try:
        values, loose = _split_words(argv, flags, takes_words=words is not None)
        bound = _bind_words(words, loose, flags)
        for flag in flags.values():
            if flag.is_required and flag.name not in values:
                raise FireError(f"--{flag.name} is needed; see --help")
        return bound | _fire(_recorder(flags), [f"--{flag}={value}" for flag, value in values.items()], name)
    except FireError as error:
        end(f"error: {error}", name=name)


def end(message: str, *, name: str, exit_code: int = 2, is_heard: bool = True) -> NoReturn:
    """End the program with one line on stderr, if this is the process that prints it."""
    if is_heard:
        say_error(f"{name}: {message}")
    raise SystemExit(exit_code)


def _bind_words(words: Flag | None, loose: list[str], flags: Flags) -> dict[str, tuple[Any, ...]]:
    """Read the words that belong to no flag.

    Raises:
        FireError: If the command takes no such words and there are some, or needs some and there are none.
    """
    if words is None:
        if loose:
            raise FireError(f"stray word {loose[0]!r}: values must follow a flag, as in --{next(iter(flags))} VALUE")
        return {}
    annotation = words.annotation.__args__[0]
    if not loose:
        raise FireError(f"{words.name.upper()} is needed: {describe(annotation)}, one or more; see --help")
    return {words.name: tuple(parse(words.name.upper(), annotation, word) for word in loose)}


def _recorder(flags: Flags) -> Callable[..., dict[str, Any]]:
    """A function whose keywords are the flags, and that returns those it is called with."""

    def record(**given: Any) -> dict[str, Any]:
        return given

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, default=None) for name in flags]
    record.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which Fire reads
    return SetParseFns(**{name: flag.parse for name, flag in flags.items()})(record)


def _fire(recorder: Callable[..., dict[str, Any]], words: list[str], name: str) -> dict[str, Any]:
    """Let Fire bind the words. Its page-long complaint becomes one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return fire.Fire(recorder, command=words, name=name, serialize=lambda given: None)
    except FireExit as error:
        raise FireError(error.trace.elements[-1].ErrorAsStr()) from None


def _split_words(argv: list[str], flags: Flags, *, takes_words: bool) -> tuple[dict[str, str], list[str]]:
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
            raise FireError(f"unknown flag {word.partition('=')[0]!r}{_suggestion(word, key, flags, takes_words)}")
        if equals and negated:
            raise FireError(f"--{key} takes no value; write --{flag.name}=True or --{flag.name}=False")
        if not equals:
            value = _value_of(flag, negated, words)
        if flag.name in values:
            raise FireError(f"--{flag.name} is given twice: {values[flag.name]!r} and {value!r}")
        values[flag.name] = value
    return values, loose


def _suggestion(word: str, key: str, flags: Flags, takes_words: bool) -> str:
    """The hint that follows an unknown flag: the flag that may be meant, or how to write the name of a file."""
    known = hint(key.lower().replace("-", "_"), flags) or did_you_mean(key, flags, "--")
    may_be_file = takes_words and not word.startswith("--")
    return known or (f"; write ./{word} if it is a file, or put -- before all files" if may_be_file else "")


def _looks_like_flag(word: str) -> bool:
    return re.match(r"--?[^\W\d]", word) is not None


def _value_of(flag: Flag, negated: bool, words: list[str]) -> str:
    """The value of a flag without "=": taken from the front of `words`, or the meaning of a bare flag."""
    if not negated and words and words[0] != END_OF_FLAGS and not _looks_like_flag(words[0]):
        return words.pop(0)
    if is_switch(flag.annotation):
        return str(not negated)
    raise FireError(f"--{flag.name} needs a value: {describe(flag.annotation)}")


def _find_flag(key: str, flags: Flags) -> tuple[Flag | None, bool]:
    """The flag that a word names, and whether it is switched off as in `--no-efficient`."""
    name = key.replace("-", "_")
    if name in flags:
        return flags[name], False
    positive = re.sub(r"^no_?", "", name)
    if positive != name and positive in flags and is_switch(flags[positive].annotation):
        return flags[positive], True
    return None, False
