"""The settings that make a run the run that it is, and which of them may change when it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class RunIdentity:
    """Settings of a run, as plain values by name, and their roles.

    Attributes:
        settings: All settings.
        defaults: Values of settings that runs of older versions did not record.
        free: Names of settings that leave results as they are.
        chosen: Names of settings whose None lets the program choose.
        growing: Names of whole numbers that may grow when the run goes on.
        by_file_name: Names of files that may have been moved; only their names are compared.
    """

    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    free: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()
    growing: frozenset[str] = frozenset()
    by_file_name: frozenset[str] = frozenset()

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The same roles for other values."""
        return replace(self, settings=settings)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the results of the run."""
        return {name: value for name, value in self.settings.items() if name not in self.free}

    def first_difference(self, recorded: Mapping[str, Any]) -> str | None:
        """Name of the first setting by which this is not the run that was recorded, None if there is none.

        Args:
            recorded: Plain values by name. One that is missing is not compared.
        """
        for name, value in self.deciding().items():
            is_chosen = value is None and name in self.chosen
            if name in recorded and not is_chosen and not self._may_follow(name, recorded[name], value):
                return name
        return None

    def _may_follow(self, name: str, recorded: Any, value: Any) -> bool:
        if name in self.growing:
            return type(recorded) is int and value >= recorded
        if name in self.by_file_name and isinstance(recorded, str) and isinstance(value, str):
            return Path(recorded).name == Path(value).name
        return recorded == value
