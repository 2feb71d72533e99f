"""Files that are either whole or not there, and reading them back without trusting them."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from train.errors import DamagedFile, RunError, UserError
from train.folder.file_kinds import HEAD, kind_of, kind_of_archive, model_in
from train.folder.reading import NOT_READABLE, read_tensors, reason_of

# The comment of the archive ends with a digest of all that stands before it.
SEAL = b"sha256 "
DIGEST_SIZE = 64


def atomic_write(path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> None:
    """Replace a file by what `write` puts into an open one; a reader sees the old contents or the new, no mixture.

    Args:
        path: The file.
        write: Takes a file that is open for reading and writing.
        keep: Where the old contents stay. Between two renames there is nothing at `path`, and the old is there.

    Raises:
        RunError: If the system refuses (disk full, no such folder, ...). The old file is untouched.
    """
    temporary = temporary_name(path)
    try:
        try:
            with open(temporary, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what is there is whole") from error


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


def save_tensors(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a dict of tensors and plain values as `torch.load` and `load_tensors` read it, with a digest of it all.

    The old contents stay in `keep`, if that is given.
    """
    import torch

    # In memory: where a write fails, torch.save hides the reason behind an exception of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = SEAL + bytes(DIGEST_SIZE)
    sealed = buffer.getvalue()[:-DIGEST_SIZE]
    digest = hashlib.sha256(sealed).hexdigest().encode()
    atomic_write(path, lambda file: file.write(sealed + digest), keep=keep)


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU. Nothing runs, and every byte is verified.

    A file that `torch.save` wrote, without the digest, is verified by the checksums of its parts.

    Raises:
        DamagedFile: If the file is damaged, or holds something else.
        UserError: If it cannot be read.
    """
    try:
        content = _contents(path)
    except (OSError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        _verify(path, content)
    except DamagedFile:
        raise
    # Whatever a parser of foreign bytes raises, the answer is the same.
    except Exception as error:
        raise DamagedFile(f"{path} {NOT_READABLE}: {reason_of(error)}") from error
    return read_tensors(path, content, is_whole=True)


def _contents(path: Path) -> bytes:
    """The bytes of an archive. What does not end like one is not read, as it may be of any size."""
    head = head_of(path)
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise DamagedFile(f"{path} {kind_of(path, head) or f'{NOT_READABLE}: it does not end like one'}")
        file.seek(0)
        return file.read()


def head_of(path: Path) -> bytes:
    """The first bytes of a file, which tell its kind.

    Raises:
        UserError: If it is a folder or a pipe, which would be waited for.
        OSError: If it cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path} cannot be read: it is not a file, but a folder{model_in(path)}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: it is not a file")
    with open(path, "rb") as file:
        return file.read(HEAD)


def _verify(path: Path, content: bytes) -> None:
    """Raise an exception unless the contents are those that were written; torch.load verifies no checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.comment:
            if hashlib.sha256(content[:-DIGEST_SIZE]).hexdigest().encode() != content[-DIGEST_SIZE:]:
                raise ValueError("its digest is another one")
        elif content[-2:] != b"\0\0":  # the length of the comment
            raise ValueError("its digest is missing")
        kind = kind_of_archive(path, archive.namelist())
        if kind:
            raise DamagedFile(f"{path} {kind}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("its members overlap")
        damaged = None if archive.comment else archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is another one")


def read_small(path: Path, *, largest: int) -> str | None:
    """The text of a file that anybody may have written, None if it does not exist.

    Raises:
        UserError: If it cannot be read, or is larger than `largest` bytes.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} cannot be read: it is not a file")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{path} cannot be read: it has more than {largest:,} bytes")
        return content.decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
