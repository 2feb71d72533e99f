"""Files that a command leaves behind, never over a file that is there, and what stops it from printing."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from train.errors import RunError, UserError

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_of_output(error: OSError) -> bool:
    """Whether an error says that the disk does not take what is printed. Those of opening files name the file."""
    return error.filename is None and error.errno in FULL_OR_BROKEN


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
