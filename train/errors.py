"""Errors that a user reads as one line: what is wrong, and what to do."""


class UserError(Exception):
    """Something that the user passed cannot be used. Every process of the run raises it."""

    exit_code = 2


class DamagedFile(UserError):
    """A file does not hold what was written, or was never such a file."""


class RunError(Exception):
    """The run cannot go on, because of the disk, the machine or a numerical failure.

    Args:
        message: The line for the user.
        in_all_processes: Whether each process of the run raises this error, so that one of them may report it for all.
    """

    exit_code = 1

    def __init__(self, message: str, *, in_all_processes: bool = False):
        super().__init__(message)
        self.in_all_processes = in_all_processes


class NumericalFailure(RunError):
    """Losses or gradients are no numbers to go on with. Every process of the run raises it.

    Args:
        message: The line for the user.
    """

    def __init__(self, message: str):
        super().__init__(message, in_all_processes=True)


class LostProcess(RunError):
    """Another process of the run has ended, or does not answer."""


class EndedElsewhere(SystemExit):
    """The main process of the run has ended and said why. The other processes end with its exit code."""
