"""Run code of other libraries for a user who expects one line: drop its output, and shorten its errors."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from train.errors import RunError
from train.out_of_memory import is_out_of_memory


@contextmanager
def failing_in_one_line(message: str) -> Iterator[None]:
    """Run code without its output, and turn any error into one line.

    Args:
        message: Describes the failure to the user.

    Raises:
        RunError: If the code raises anything: the message with the first line of the original cause. An error that
            means that memory ran out passes unchanged.
    """
    try:
        with without_output():
            yield
    # An exporter may raise anything, and the user can do the same about all of it.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"{message}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The original cause of an error, in one line; exporters put pages of advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"


@contextmanager
def without_output() -> Iterator[None]:
    """Drop everything that this process prints, warns about or logs; exceptions pass.

    The file descriptors of stdout and stderr are replaced too, because libraries in C++ write to them directly.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(nowhere))
        for descriptor, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
            if stream is not None:  # None if it was closed at the start; any other file may then have the descriptor
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        yield
