"""What a command prints and leaves in new files, never over a file that is there, and what stops it from doing so."""

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from train.errors import RunError, UserError
from train.terminal import say

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_of_output(error: OSError) -> bool:
    """Whether an error says that the disk does not take what is printed. Those of opening files name the file."""
    return error.filename is None and error.errno in FULL_OR_BROKEN


def print_and_write(lines: Iterable[str], files: Mapping[Path | None, bytes]) -> None:
    """Print a result and then write it to new files. A failure of one of these does not keep the others from it.

    Args:
        lines: Of the result.
        files: Contents by path; that of None is not written.

    Raises:
        OSError: If stdout does not take the lines.
        RunError: If a file has come into being meanwhile, or cannot be written.
    """
    with ExitStack() as stack:
        for path, content in reversed(files.items()):
            if path is not None:
                stack.callback(write_new, path, content)
        say(*lines)


def require_working_directory() -> None:
    """Make sure that the folder that relative paths begin in still exists; libraries ask for it too.

    Raises:
        UserError: If it does not.
    """
    try:
        os.getcwd()  # noqa: PTH109 the same as Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}; change to a folder that exists"
        ) from error


def require_new(path: Path | None, *, flag: str, suffix: str) -> None:
    """Make sure, before any work, that a file can be written; None is always fine.

    Raises:
        UserError: If the name has another ending, the file exists, or its folder cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise UserError(f"--{flag} is {str(path)!r}, but must be a file name that ends in {suffix}")
    try:
        path.open("xb").close()
        path.unlink()
    except FileExistsError:
        raise UserError(f"--{flag} {path} exists already; choose another name") from None
    except OSError as error:
        raise UserError(f"--{flag} {path} cannot be written: {error.strerror or error}") from error


def require_replaceable(path: Path, *, instead: str) -> None:
    """Make sure, before any work, that a file can be written, or written anew.

    Args:
        path: Of the file.
        instead: The flag that names another one.

    Raises:
        UserError: If a folder stands there, or the folder around it cannot be written.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written; name another file with --{instead}")


def write_new(path: Path, content: bytes) -> None:
    """Write a new file. What could not be written whole does not stay.

    Raises:
        RunError: If the file has come into being meanwhile, or cannot be written.
    """
    try:
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
