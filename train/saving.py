"""Files that are either whole or not there, and reading them back without trusting them."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from train.errors import RunError, UserError


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file by what `write` puts into an open one; a reader sees the old contents or the new, no mixture.

    Raises:
        RunError: If the system refuses (disk full, no such folder, ...). The old file is untouched.
    """
    temporary = temporary_name(path)
    try:
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what was there before is unchanged") from error


def temporary_name(path: Path) -> Path:
    """Where `atomic_write` prepares a file. The name is fixed, so that the next write clears what a kill left."""
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; systems that cannot open folders do without."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values as `load_tensors` reads it."""
    import torch

    atomic_write(path, lambda file: torch.save(content, file))


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU. Nothing else is unpickled.

    Raises:
        UserError: If the file is damaged, or is no such file.
    """
    import torch

    try:
        archive = path.read_bytes()
        # torch.load verifies no checksum, so that a flipped bit would be a wrong weight.
        damaged = zipfile.ZipFile(io.BytesIO(archive)).testzip()
        if damaged:
            raise UserError(f"{path} is damaged (in {damaged})")
        return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from error
