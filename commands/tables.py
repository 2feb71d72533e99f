"""Tables as text and as CSV."""

import csv
import re
from collections.abc import Sequence
from types import SimpleNamespace

from train.terminal import printable

# Halves of characters that stand for no byte of a file name, unlike those that "surrogateescape" makes and takes.
NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns, the first one to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def to_csv(records: Sequence[dict[str, object]], *, columns: Sequence[str] | None = None) -> bytes:
    """A CSV file in UTF-8 with a header; None is an empty cell.

    Names of files and of classes stay as they are on disk, byte for byte, even where these bytes are no text.

    Args:
        records: Cells by the names of their columns.
        columns: Those names in their order. None: those of the first record.
    """
    lines: list[str] = []
    end = "\r\n"  # with it a carriage return in a name is quoted, as readers need it, by Python 3.11 too
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), columns or list(records[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(records)
    text = "".join(line.removesuffix(end) + "\n" for line in lines)
    return NO_BYTES.sub(lambda half: repr(half[0])[1:-1], text).encode(errors="surrogateescape")


def plain(value: object, *, longest: int = 40) -> str:
    """The text of a value that may come from anywhere, `printable` and short enough for a table or the title of a plot.

    Args:
        value: Such as a name of a folder or of a class.
        longest: A longer text keeps this many characters, at both of its ends. From 5 on.
    """
    text = printable(value)
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[-end:]}"
