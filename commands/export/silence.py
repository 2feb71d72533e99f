"""Keeping the remarks of other people's code away from a user who waits for one line."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def silenced() -> Iterator[None]:
    """Drop all that this process prints, warns of or logs meanwhile; exceptions pass.

    Libraries in C++ write to the descriptors themselves, past `sys.stdout` and `sys.stderr`.
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
            if stream is not None:  # as it is where it was closed; the number may then be that of any file
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        yield
