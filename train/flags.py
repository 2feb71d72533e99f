"""The command line: every word of it is bound and checked by Fire before anything runs.

`fire.Fire(f)` on its own calls f first and complains of a mistyped flag afterwards, guesses types from the look of a
value, and drops what follows ` -- `. Here Fire binds a stand-in that only records its keywords, with a parser for
each flag that the annotation in the signature names.
"""

import contextlib
import difflib
import functools
import inspect
import io
import math
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import fire
from fire.core import FireError, FireExit
from fire.decorators import SetParseFns
from fire.helptext import HelpText
from fire.trace import FireTrace

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
HELP_WORDS = ("--help", "-h")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless the `open_` flags say otherwise, in steps of `step`.

    Attributes:
        rule: How to say it to a user; made from the bounds when empty.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    step: int | None = None
    rule: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        on_step = self.step is None or (value - self.low) % self.step == 0
        return math.isfinite(value) and above and below and on_step

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        high = "" if self.high == math.inf else f" and {'below' if self.open_high else 'at most'} {self.high:,.10g}"
        return self.rule or low + high

    def nearest(self, value: float) -> str:
        """Name the allowed values on both sides of one that falls between two steps; empty for every other value."""
        if self.step is None or not self.low < value < self.high:
            return ""
        below = int(value - (value - self.low) % self.step)
        return f"; the nearest are {below} and {below + self.step}"


def bind(function: Callable[..., Any], argv: list[str], *, name: str) -> dict[str, Any]:
    """Return the flags that a command line names, as typed and checked values; defaults are left out.

    Prints the help on stdout and exits with 0 if the line asks for it. A line that cannot be used ends with one
    line on stderr and exit code 2. `function` itself is never called.

    Args:
        function: Keyword-only parameters are the flags. Annotations bool, int, float, Path, Literal, each possibly
            with None, and `Annotated[..., Range(...)]` choose how a value is read.
        argv: The words behind the program's name.
        name: The program's name in messages.
    """
    annotations = typing.get_type_hints(function, include_extras=True)
    flags = {flag: annotations[flag] for flag in inspect.signature(function).parameters}
    recorder = _recorder(function, flags)
    if _asks_for_help(argv):
        print(_help(recorder, name))
        raise SystemExit(0)
    try:
        values = _split_words(argv, flags)
        _require_all(function, values)
        return _fire(recorder, [f"--{flag}={value}" for flag, value in values.items()], name)
    except FireError as error:
        refuse(str(error), name=name)


def refuse(message: str, *, name: str, exit_code: int = 2) -> NoReturn:
    """End the program with one line on stderr."""
    one_line = " ".join(message.split())
    print(f"{name}: error: {one_line}", file=sys.stderr)
    raise SystemExit(exit_code)


def _recorder(function: Callable[..., Any], flags: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function with the flags and docstring of `function` that returns the keywords it is called with."""

    def record(**given: Any) -> dict[str, Any]:
        return given

    signature = inspect.signature(function)
    shown = [p.replace(annotation=_Shown(flags[p.name])) for p in signature.parameters.values()]
    record.__signature__ = signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)
    record.__doc__ = inspect.getdoc(function)
    parsers = {flag: functools.partial(parse, flag, annotation) for flag, annotation in flags.items()}
    return SetParseFns(**parsers)(record)


class _Shown:
    """An annotation as the help shows it."""

    def __init__(self, annotation: Any):
        self.annotation = annotation

    def __repr__(self) -> str:
        return describe(self.annotation)


def describe(annotation: Any) -> str:
    """Say what values a flag with this annotation takes, for example "a whole number, 1 or more, or None"."""
    kind, limits, optional = _take_apart(annotation)
    if typing.get_origin(kind) is Literal:
        text = " | ".join(typing.get_args(kind))
    else:
        text = {bool: "True or False", int: "a whole number", float: "a number", Path: "a path"}[kind]
    return text + (f", {limits}" if limits else "") + (", or None" if optional else "")


def parse(flag: str, annotation: Any, text: str) -> Any:
    """Read the value of one flag from its text.

    Raises:
        FireError: If the text is no such value or out of range. The message names flag, text and what is allowed.
    """
    kind, limits, optional = _take_apart(annotation)
    if optional and text.lower() == "none":
        return None
    value = _READERS.get(kind, functools.partial(_read_choice, kind))(text)
    if value is None or (limits and value not in limits):
        hint = limits.nearest(value) if limits and value is not None else ""
        if typing.get_origin(kind) is Literal:
            hint = _did_you_mean(text, typing.get_args(kind))
        raise FireError(f"--{flag} is {text!r}, but must be {describe(annotation)}{hint}")
    return value


def _take_apart(annotation: Any) -> tuple[Any, Range | None, bool]:
    """Split an annotation into its type, its range and whether None is allowed."""
    optional = False
    limits = None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
        optional = True
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, limits = typing.get_args(annotation)
    return annotation, limits, optional


def _read_int(text: str) -> int | None:
    # Python itself refuses to read numbers of more than 4,300 digits.
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,30}", text) else None


def _read_float(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else None


def _read_path(text: str) -> Path | None:
    if not text.strip() or "\0" in text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" of a user that does not exist is an ordinary name
        return Path(text)


def _read_choice(kind: Any, text: str) -> str | None:
    return text if text in typing.get_args(kind) else None


_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: BOOLEANS.get(text.lower()),
    int: _read_int,
    float: _read_float,
    Path: _read_path,
}


def _asks_for_help(argv: list[str]) -> bool:
    return any(word in HELP_WORDS for word in argv)


def _help(recorder: Callable[..., Any], name: str) -> str:
    """Fire's help page, without the one-letter flags that Fire derives and that this program refuses."""
    page = HelpText(recorder, trace=FireTrace(recorder, name=name))
    return re.sub(r"-\w, (?=\S*--)", "", page)


def _split_words(argv: list[str], flags: dict[str, Any]) -> dict[str, str]:
    """Pair the flags of a line with the text of their values, so that Fire can read `--flag=value` in one way only.

    Raises:
        FireError: For a word that is neither flag nor value, a missing value, or a flag given twice.
    """
    values: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            raise FireError(f"'--' ends the flags, and what follows would be ignored: {' '.join(words) or 'nothing'}")
        if not re.match(r"--?[^\W\d]", word):
            raise FireError(f"stray word {word!r}: values belong behind a flag, as in --save FOLDER")
        key, equals, value = word.lstrip("-").partition("=")
        flag, negated = _find_flag(key, flags)
        if flag is None or not word.startswith("--"):
            raise FireError(f"unknown flag {word.partition('=')[0]!r}{_did_you_mean(key, flags, '--')}")
        if not equals:
            if words and not re.match(r"--?[^\W\d]|--$", words[0]) and not negated:
                value = words.pop(0)
            elif _take_apart(flags[flag])[0] is bool:
                value = "False" if negated else "True"
            else:
                raise FireError(f"--{flag} needs a value: {describe(flags[flag])}")
        elif negated:
            raise FireError(f"--{key} takes no value; write --{flag}=True or --{flag}=False")
        if flag in values:
            raise FireError(f"--{flag} is given twice: {values[flag]!r} and {value!r}")
        values[flag] = value
    return values


def _find_flag(key: str, flags: dict[str, Any]) -> tuple[str | None, bool]:
    """The flag that a word names, and whether it is switched off as in `--no-efficient`."""
    flag = key.replace("-", "_")
    if flag in flags:
        return flag, False
    positive = re.sub(r"^no_?", "", flag)
    if positive != flag and positive in flags and _take_apart(flags[positive])[0] is bool:
        return positive, True
    return None, False


def _did_you_mean(word: str, names: Any, prefix: str = "") -> str:
    close = difflib.get_close_matches(word.replace("-", "_").lower(), list(names), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _fire(recorder: Callable[..., dict[str, Any]], words: list[str], name: str) -> dict[str, Any]:
    """Let Fire bind the words. Its page-long complaint becomes one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return fire.Fire(recorder, command=words, name=name, serialize=lambda given: None)
    except FireExit as error:
        raise FireError(error.trace.elements[-1].ErrorAsStr()) from None


def _require_all(function: Callable[..., Any], values: dict[str, str]) -> None:
    for flag, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty and flag not in values:
            raise FireError(f"--{flag} is needed; see --help")
