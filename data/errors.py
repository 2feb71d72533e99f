"""What can be wrong with a data set, each with the line that a user reads."""


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
