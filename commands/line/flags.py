"""Settings of a command: frozen dataclasses whose fields are its flags.

A field says all there is to know about a flag, once: its annotation is the type with the allowed range, and `flag` adds
the default, the help text and the roles. The command line, the help page, config.json and the comparisons of runs read
it from there.
"""

import dataclasses
import enum
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, ClassVar, TypeVar, dataclass_transform

from fire.core import FireError

from commands.line.types import did_you_mean, parse


class Role(enum.Flag):
    """How a flag is treated once a run exists.

    Attributes:
        FREE: Leaves the results of the run as they are, so it may differ when the run is resumed.
        CHOSEN: None lets the program choose. config.json holds the choice.
        GROWING: May be raised when the run is resumed.
        FILE_NAME: A file that may have been moved; only its name is compared.
        NOT_COMPARED: Left out where runs are compared, or shown there in a column of its own.
        SHORTHAND: Stands for other flags, and is not recorded itself.
    """

    FREE = enum.auto()
    CHOSEN = enum.auto()
    GROWING = enum.auto()
    FILE_NAME = enum.auto()
    NOT_COMPARED = enum.auto()
    SHORTHAND = enum.auto()


NO_ROLE = Role(0)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One field of a settings class.

    Attributes:
        name: Name of the field, and of the flag without its dashes.
        annotation: Type and range, see `commands.line.types`.
        default: Value where the line does not name the flag; MISSING where it must.
        help: Text of the help page.
        role: Roles of the flag.
        takes_words: Whether it takes the words of the line that belong to no flag.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    role: Role
    takes_words: bool

    @property
    def is_required(self) -> bool:
        """Whether the command line must give it a value."""
        return self.default is MISSING

    def parse(self, text: str) -> Any:
        """Read its value from the text of a command line.

        Raises:
            FireError: If the text is no such value. The message names flag, text and what is allowed.
        """
        return parse(self.name, self.annotation, text)


def flag(help: str, *, default: Any = MISSING, role: Role = NO_ROLE) -> Any:
    """A field of a settings class that is a flag."""
    return dataclasses.field(default=default, metadata={"help": help, "role": role, "takes_words": False})


def words(help: str) -> Any:
    """A field of a settings class, a tuple, that takes the words of the line that belong to no flag: one or more."""
    return dataclasses.field(metadata={"help": help, "role": NO_ROLE, "takes_words": True})


class Settings:
    """Base class of all settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """All flags by name, in the order of the help page."""
        annotations = typing.get_type_hints(cls, include_extras=True)
        return {
            field.name: Flag(field.name, annotations[field.name], field.default, **field.metadata)
            for field in dataclasses.fields(cls)
        }

    @classmethod
    def names(cls, role: Role) -> frozenset[str]:
        """Names of the flags that have a role."""
        return frozenset(name for name, flag in cls.flags().items() if role in flag.role)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default values by name, of the flags that have one."""
        return {name: flag.default for name, flag in cls.flags().items() if not flag.is_required}

    def plain(self) -> dict[str, Any]:
        """All values by name, as config.json holds them: paths are absolute, so that they are found from any folder."""
        recorded = [name for name, flag in self.flags().items() if Role.SHORTHAND not in flag.role]
        values = {name: getattr(self, name) for name in recorded}
        return {
            name: os.path.normpath(value.absolute()) if isinstance(value, Path) else value
            for name, value in values.items()
        }


AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(flag, words))
def settings(cls: type[AnySettings]) -> type[AnySettings]:
    """Make a settings class of a class whose fields are flags: a frozen dataclass that takes keywords only."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def parse_recorded(cls: type[Settings], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Read values that a file recorded as if they had been typed on a command line.

    Args:
        cls: Settings class that they belong to.
        recorded: Plain values by name.

    Returns:
        Typed and checked values by name. Flags that are not recorded are left out.

    Raises:
        FireError: If there is no such flag, or it takes no such value.
    """
    flags = cls.flags()
    for name in recorded:
        if name not in flags:
            raise FireError(f"unknown flag {short_repr(name)}{did_you_mean(name, flags, '--')}")
    return {name: flags[name].parse(str(value)) for name, value in recorded.items()}


@dataclasses.dataclass(frozen=True)
class Command(typing.Generic[AnySettings]):
    """One command of the program.

    Attributes:
        settings: Its flags.
        run: Does its work. The docstring is the text of the help page.
        complete: Adds the flags that other flags stand for, such as those of a recipe, to those that the line names.
        in_processes: Whether several processes that torchrun has started may share its work.
    """

    settings: type[AnySettings]
    run: Callable[[AnySettings], None]
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
    in_processes: bool = False
