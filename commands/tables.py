"""Tables as aligned text, Markdown, LaTeX and CSV."""

import csv
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from train.terminal import printable

# Lone surrogates that stand for no byte of a file name. Python's error handler "surrogateescape" gives and takes only
# the others, from U+DC80 to U+DCFF.
UNENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

# Characters with a meaning in the Markdown of GitHub, and in LaTeX.
MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$#!]")
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}
    | {"[": "{[}", "*": "{*}"}  # which belong to the end of the row before
)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns. The first column is aligned to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table in the Markdown of GitHub, one line for each row, the first of which is the heading."""
    heading, *others = (f"| {' | '.join(MARKDOWN.sub(_escaped, cell) for cell in row)} |" for row in rows)
    return [heading, f"| :--- |{' ---: |' * (len(rows[0]) - 1)}", *others]


def latex(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a tabular of LaTeX, which needs no package. The first row is the heading."""
    heading, *others = (f"  {' & '.join(map(_in_latex, row))} \\\\" for row in rows)
    columns, rule = "l" + "r" * (len(rows[0]) - 1), "  \\hline"
    return [f"\\begin{{tabular}}{{{columns}}}", rule, heading, rule, *others, rule, "\\end{tabular}"]


def to_csv(records: Sequence[Mapping[str, object]], *, columns: Sequence[str] | None = None) -> bytes:
    """Write a CSV file in UTF-8 with a header line. None becomes an empty cell.

    Names of files and classes keep the bytes they have on disk, even if these are not valid UTF-8.

    Args:
        records: Cells by column name.
        columns: Column names in their order. None: the keys of the first record.
    """
    lines: list[str] = []
    # With this line terminator, carriage returns in names are quoted under Python 3.11 too, as readers need them.
    end = "\r\n"
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), columns or list(records[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(records)
    text = "".join(line.removesuffix(end) + "\n" for line in lines)
    return UNENCODABLE.sub(lambda half: repr(half[0])[1:-1], text).encode(errors="surrogateescape")


def plain(value: object, *, longest: int = 40) -> str:
    """Return the text of an untrusted value, `printable` and short enough for a table or the title of a plot.

    Args:
        value: For example the name of a folder or of a class.
        longest: Maximum number of characters, 5 or more. A longer text keeps its beginning and its end.
    """
    text = printable(value)
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[-end:]}"


def _escaped(character: re.Match[str]) -> str:
    return f"\\{character[0]}"


def _in_latex(cell: str) -> str:
    return re.sub("-(?=-)", "-{}", cell.translate(LATEX))  # two minus signs would be a dash
