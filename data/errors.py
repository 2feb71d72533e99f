"""What can be wrong with a data set, each with the line that a user reads."""

from collections.abc import Sequence

MOST_NAMES = 10  # that a line lists; more would hide how it ends


class DataError(Exception):
    """A data set cannot be used as asked. `exit_code` is what a command-line program should exit with."""

    exit_code = 2


class MissingData(DataError):
    """Files are not where they belong."""


class CorruptedData(DataError):
    """A file is there, but its contents are not those of the data set."""


class NoNetwork(DataError):
    """A download failed."""

    exit_code = 1


def listed(names: Sequence[object], *, most: int = MOST_NAMES) -> str:
    """Names as in a sentence: "a", "a and b", "a, b and c"; after `most` of them the number of the others."""
    shown = [str(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def as_one(errors: Sequence[DataError]) -> DataError:
    """One error for one or more: the only one, or a line with the first ten and their number."""
    if len(errors) == 1:
        return errors[0]
    lines = "; ".join(str(error) for error in errors[:MOST_NAMES])
    others = f"; and {len(errors) - MOST_NAMES:,} more" if len(errors) > MOST_NAMES else ""
    return CorruptedData(f"{len(errors):,} files are broken: {lines}{others}")
