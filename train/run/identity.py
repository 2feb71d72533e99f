"""The identity of a run: the settings that decide its results, compared with those that were recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self


class Difference(NamedTuple):
    """A setting by which a run is not the recorded one.

    Attributes:
        name: The setting.
        recorded: Its recorded value.
        current: Its value in this run.
    """

    name: str
    recorded: Any
    current: Any


@dataclass(frozen=True)
class RunIdentity:
    """The settings of a run as plain values, and the role that each of them has when the run is resumed.

    A setting without a role must not change.

    Attributes:
        settings: All settings by name.
        defaults: Values of settings that runs of older versions did not record, but ran with.
        free: Settings that may differ on resume, because they do not decide the results.
        chosen: Settings whose None lets the program choose, so that None agrees with every recorded value.
        growing: Whole numbers that may become larger.
        by_file_name: Paths that agree if the names of the files do, because the file was read and may have been moved.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()
    growing: frozenset[str] = frozenset()
    by_file_name: frozenset[str] = frozenset()

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return the identity of the same run with its final settings, in which the program's choices are filled in."""
        return replace(self, settings=dict(settings))

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the results of the run."""
        return {name: value for name, value in self.settings.items() if name not in self.free}

    def first_difference(self, recorded: Mapping[str, Any]) -> Difference | None:
        """Return the first setting by which this run is not the recorded one; None if it is the same run.

        Args:
            recorded: Recorded settings. One that is missing here and in `defaults` is not compared.
        """
        known = {**self.defaults, **recorded}
        for name, value in self.deciding().items():
            if name in known and not self._agrees(name, known[name], value):
                return Difference(name, known[name], value)
        return None

    def _agrees(self, name: str, recorded: Any, current: Any) -> bool:
        if current is None and name in self.chosen:
            return True
        if name in self.growing:
            return type(recorded) is int and current >= recorded
        if name in self.by_file_name and isinstance(recorded, str) and isinstance(current, str):
            return Path(recorded).name == Path(current).name
        return recorded == current
