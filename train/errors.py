"""Errors that a user reads as one line: what is wrong, and what to do."""


class UserError(Exception):
    """Something that the user passed cannot be used."""

    exit_code = 2


class RunError(Exception):
    """The run cannot go on: the disk, the machine or the numbers failed."""

    exit_code = 1
