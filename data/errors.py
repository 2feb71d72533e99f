"""Errors in data sets. The message of each is one line for the user."""

from collections.abc import Sequence

MOST_NAMES = 10  # in one line; more would hide how it ends


class DataError(Exception):
    """A data set cannot be used as asked. `exit_code` is the exit code for a command-line program."""

    exit_code = 2


class MissingData(DataError):
    """Files are not where they belong."""


class CorruptedData(DataError):
    """A file exists, but its contents are damaged or do not belong to the data set."""


class NoNetwork(DataError):
    """A download failed."""

    exit_code = 1


def listed(names: Sequence[object], *, most: int = MOST_NAMES) -> str:
    """Join names as in a sentence: "a", "a and b", "a, b and c". After `most` names only the rest is counted."""
    shown = [str(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def as_one(errors: Sequence[DataError]) -> DataError:
    """Combine one or more errors into one whose line has their number and the messages of the first ten."""
    if len(errors) == 1:
        return errors[0]
    lines = "; ".join(str(error) for error in errors[:MOST_NAMES])
    others = f"; and {len(errors) - MOST_NAMES:,} more" if len(errors) > MOST_NAMES else ""
    return CorruptedData(f"{len(errors):,} files are broken: {lines}{others}")
