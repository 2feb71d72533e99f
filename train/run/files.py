"""Files of tensors with a digest, and reading files back without trusting them."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

from train.errors import DamagedFile, UserError
from train.run.file_kinds import HEAD, kind_of, kind_of_archive, model_in
from train.run.reading import NOT_READABLE, read_tensors, reason_of

# The comment of the archive ends with a digest of all that stands before it.
SEAL = b"sha256 "
DIGEST_SIZE = 64


def sealed(content: dict[str, Any]) -> bytes:
    """A dict of tensors and plain values as `torch.load` and `load_tensors` read it, with a digest of it all."""
    import torch

    # In memory: where a write fails, torch.save hides the reason behind an exception of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = SEAL + bytes(DIGEST_SIZE)
    contents = buffer.getvalue()[:-DIGEST_SIZE]
    return contents + hashlib.sha256(contents).hexdigest().encode()


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
