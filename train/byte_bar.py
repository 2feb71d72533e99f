"""The progress of a download: a bar with speed and time left, or now and then a line where there is no terminal."""

import time

from train.terminal import Bar, say_error

LINE_SECONDS = 60


class ByteBar(Bar):
    """A bar of bytes on stderr; where stderr is not a terminal, a line there every minute.

    Args:
        name: Text in front of the bar.
        total: Number of bytes; None if it is not known.
        start: Number of bytes that were there before.
    """

    def __init__(self, name: str, total: int | None, start: int):
        super().__init__(name, total, unit="B", initial=start, is_scaled=True)
        self._total = total
        self._count = self._start = start
        self._begin = time.monotonic()
        self._next_line = self._begin + LINE_SECONDS

    def advance(self, num_items: int) -> None:
        """Count bytes that have arrived."""
        super().advance(num_items)
        self._count += num_items
        if time.monotonic() >= self._next_line and not self.is_shown:
            self._next_line = time.monotonic() + LINE_SECONDS
            say_error(f"{self.name}: {self._describe()}")

    def _describe(self) -> str:
        rate = (self._count - self._start) / (time.monotonic() - self._begin)
        if self._total is None:
            return f"{self._count / 1e6:,.1f} MB, {rate / 1e3:,.0f} kB/s"
        minutes = (self._total - self._count) / rate / 60
        sizes = f"{self._count / 1e6:,.1f} of {self._total / 1e6:,.1f} MB"
        return f"{sizes}, {rate / 1e3:,.0f} kB/s, {minutes:,.0f} minutes left"
