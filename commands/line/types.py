"""Types of flags: an annotation determines how a value is read, checked and described."""

import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NewType
from urllib.parse import urlsplit

from fire.core import FireError

# Rising numbers above 0 and below 1 with commas between them. They stay text, as config.json holds them.
Fractions = NewType("Fractions", str)

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless the `open_` flags say otherwise, in steps of `step`.

    Attributes:
        rule: The same in words for a user; derived from the bounds if empty.
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
        high = "" if self.high == math.inf else f" and {'below' if self.open_high else 'at most'} {self.high:,}"
        return self.rule or low + high

    def nearest(self, value: float) -> str:
        """Name the allowed values on both sides of one between two steps, or a bound that `rule` leaves out."""
        if self.rule and value > self.high:
            return f"; and at most {self.high:,}"
        if self.step is None or not self.low < value < self.high:
            return ""
        below = int(value - (value - self.low) % self.step)
        return f"; the nearest are {below} and {below + self.step}"


@dataclass(frozen=True)
class Names:
    """A set of allowed words.

    Attributes:
        names: The words.
        rule: The same in words for a user.
    """

    names: tuple[str, ...]
    rule: str

    def __contains__(self, value: str) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return self.rule

    def nearest(self, value: str) -> str:
        """Name the word that looks most like another; empty if none does."""
        return did_you_mean(value, self.names)


@dataclass(frozen=True)
class Addresses:
    """Addresses of folders on web servers, with commas between them."""

    def __contains__(self, value: str) -> bool:
        return all(map(_is_address_of_folder, value.split(",")))

    def __str__(self) -> str:
        return "http:// or https:// addresses of folders, with commas between them"

    def nearest(self, value: str) -> str:
        """Name the first part that is no such address, if there are several."""
        parts = value.split(",")
        return f"; {next(part for part in parts if part not in self)!r} is none" if len(parts) > 1 else ""


Limits = Range | Names | Addresses


def describe(annotation: Any) -> str:
    """Say what values a flag with this annotation takes, for example "a whole number, 1 or more, or None"."""
    kinds, limits, optional = _take_apart(annotation)
    end = ", or None" if optional else ""
    if typing.get_origin(kinds[0]) is tuple:
        return f"{describe(typing.get_args(kinds[0])[0])}; several with commas between them{end}"
    text = " or ".join(_NAMES[kind] if kind in _NAMES else " | ".join(typing.get_args(kind)) for kind in kinds)
    return ", ".join(filter(None, [text, str(limits or "")])) + end


def parse(flag: str, annotation: Any, text: str) -> Any:
    """Read the value of one flag, or of a word with a name in capitals, from its text.

    Raises:
        FireError: If the text is no such value or out of range. The message names flag, text and what is allowed.
    """
    kinds, limits, optional = _take_apart(annotation)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(kinds[0]) is tuple:
        return tuple(parse(flag, typing.get_args(kinds[0])[0], part.strip()) for part in text.split(","))
    readings = (_READERS.get(kind, functools.partial(_read_choice, kind))(text) for kind in kinds)
    value = next((reading for reading in readings if reading is not None), None)
    if value is None or (limits and value not in limits):
        hint = limits.nearest(value) if limits and value is not None else ""
        choices = [choice for kind in kinds if kind not in _READERS for choice in typing.get_args(kind)]
        name = flag if flag.isupper() else f"--{flag}"
        raise FireError(f"{name} is {text!r}, but must be {describe(annotation)}{hint or did_you_mean(text, choices)}")
    return value


def is_switch(annotation: Any) -> bool:
    """Whether a flag can be True or False, so that it may stand alone or be switched off by `--no-`."""
    return bool in _take_apart(annotation)[0]


def _take_apart(annotation: Any) -> tuple[list[Any], Limits | None, bool]:
    """Split an annotation into its types without None, its range and whether None is allowed."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if is_union else (annotation,)
    kinds, limits = [part for part in parts if part is not types.NoneType], None
    if typing.get_origin(kinds[0]) is typing.Annotated:
        kinds[0], limits = typing.get_args(kinds[0])
    return kinds, limits, types.NoneType in parts


def _read_int(text: str) -> int | None:
    # Python itself refuses to read numbers of more than 4,300 digits.
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,30}", text) else None


def _read_float(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else None


def _read_path(text: str) -> Path | None:
    if not text.strip() or "\0" in text or text == "None":  # a folder of that name is ./None
        return None
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except UnicodeEncodeError:  # a lone surrogate, which no name of a file can hold
        return None
    except RuntimeError:  # "~name" of a user that does not exist is an ordinary name
        return Path(text)


def _is_address_of_folder(text: str) -> bool:
    if not re.fullmatch(r"https?://[!-~]+", text, re.IGNORECASE):  # other characters have to be percent-encoded
        return False
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0 and not any((parts.username, parts.query, parts.fragment))
    except ValueError:  # of the port, or of the brackets around an IPv6 address
        return False


def _read_fractions(text: str) -> str | None:
    numbers = [_read_float(part.strip()) for part in text.split(",")]
    known = [number for number in numbers if number is not None]
    is_rising = all(low < high for low, high in pairwise([0, *known, 1]))
    return ",".join(map(str, known)) if is_rising and len(known) == len(numbers) else None


def _read_choice(kind: Any, text: str) -> str | None:
    return text if text in typing.get_args(kind) else None


_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    str: "",
    Fractions: "rising numbers above 0 and below 1, with commas between them",
}
_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: BOOLEANS.get(text.lower()),
    int: _read_int,
    float: _read_float,
    Path: _read_path,
    str: str,
    Fractions: _read_fractions,
}


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Name the one of `names` that looks most like a word; empty if none looks like it."""
    by_look = {_look(name): name for name in names}
    close = difflib.get_close_matches(_look(word), by_look, n=1)
    return f"; did you mean {prefix}{by_look[close[0]]}?" if close else ""


def _look(word: str) -> str:
    return word.lower().replace("-", "_").replace("plus", "+")  # as in densenet-bc-100-12-c10+
