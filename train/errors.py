"""Errors that a user reads as one line: what is wrong, and what to do."""


class UserError(Exception):
    """Something that the user passed cannot be used. Where there are several processes, all of them raise it."""

    exit_code = 2


class DamagedFile(UserError):
    """A file does not hold what was written, or was never such a file."""


class RunError(Exception):
    """The run cannot go on: the disk, the machine or the numbers failed.

    Args:
        message: The line.
        in_all_processes: Whether each process of the run raises this error, so that one of them may speak for all.
    """

    exit_code = 1

    def __init__(self, message: str, *, in_all_processes: bool = False):
        super().__init__(message)
        self.in_all_processes = in_all_processes


class LostProcess(RunError):
    """Another process of the run has ended, or does not answer."""


class EndedElsewhere(SystemExit):
    """The first process of the run has ended and said why; its exit code is everyone's."""
