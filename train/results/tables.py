"""Tables as text and as CSV."""

import csv
import io
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns, the first one to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def to_csv(records: Sequence[dict[str, object]]) -> str:
    """CSV text with a header; None is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def plain(value: object, *, longest: int = 40) -> str:
    """The text of a value that may come from anywhere, on one line: what cannot be printed becomes "?".

    Args:
        value: Such as a name of a folder or of a class.
        longest: A longer text keeps this many characters, at both of its ends. From 5 on.
    """
    text = "".join(character if character.isprintable() else "?" for character in str(value))
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[-end:]}"
