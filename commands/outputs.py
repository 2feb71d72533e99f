"""Results on stdout and in new files. Existing files are never overwritten, except for products of a run."""

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from train.errors import RunError, UserError
from train.terminal import say

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_output_error(error: OSError) -> bool:
    """Whether an error means that stdout cannot be written, to a full disk for example.

    An error that names a file comes from opening this file, not from printing.
    """
    return error.filename is None and error.errno in FULL_OR_BROKEN


def print_and_write(lines: Iterable[str], files: Mapping[Path | None, bytes]) -> None:
    """Print a result and write new files. Each of these is tried, even if another one fails.

    Args:
        lines: The result, printed first.
        files: Contents by path. An entry for the path None is skipped.

    Raises:
        OSError: If stdout cannot be written.
        RunError: If a file exists by now, or cannot be written.
    """
    with ExitStack() as stack:
        for path, content in reversed(list(files.items())):
            if path is not None:
                stack.callback(write_new, path, content)
        say(*lines)


def require_working_directory() -> None:
    """Make sure that the working directory still exists: relative paths start there, and libraries ask for it.

    Raises:
        UserError: If it does not exist.
    """
    try:
        os.getcwd()  # noqa: PTH109 the same as Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}; change to a folder that exists"
        ) from error


def require_new(path: Path | None, *, flag: str, suffix: str) -> None:
    """Make sure, before any work is done, that a new file can be written.

    Args:
        path: The file. None: nothing is checked.
        flag: The flag that names the file, without dashes.
        suffix: Required ending of the name, such as ".csv".

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
    """Make sure, before any work is done, that a file can be written or replaced.

    Args:
        path: The file.
        instead: The flag that names another file, without dashes.

    Raises:
        UserError: If the path is a folder, or the folder that contains it cannot be written.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written; name another file with --{instead}")


def write_new(path: Path, content: bytes) -> None:
    """Write a new file. If the disk does not take all of it, the file is removed again.

    Raises:
        RunError: If the file exists by now, or cannot be written.
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
