"""Files that a command leaves behind: never over a file that is there."""

from pathlib import Path

from train.errors import RunError, UserError


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


def write_new(path: Path, content: bytes) -> None:
    """Write a new file.

    Raises:
        RunError: If the file has come into being meanwhile, or cannot be written.
    """
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
