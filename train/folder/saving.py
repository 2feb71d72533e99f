"""Files of tensors with a digest, and reading files back without trusting them."""

import hashlib
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

from train.errors import UserError

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


class DamagedFile(UserError):
    """A file does not hold what was written, or was never such a file."""


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU. Nothing else is unpickled, and every byte is verified.

    A file that `torch.save` wrote, without the digest, is verified by the checksums of its parts.

    Raises:
        DamagedFile: If the file is damaged, or is no such file.
        UserError: If it cannot be read.
    """
    import torch

    try:
        content = _contents(path)
    except (OSError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        _verify(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kinds of tensors that torch gives up; it is ours to say what is refused
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # Whatever a parser of foreign bytes raises, the answer is the same.
    except Exception as error:
        raise DamagedFile(f"{path} is damaged, or is no file of tensors: {reason_of(error)}") from error
    if not isinstance(loaded, dict):
        raise DamagedFile(f"{path} holds no dict of tensors, but {type(loaded).__name__}")
    return loaded


def _contents(path: Path) -> bytes:
    """The bytes of an archive. What does not end like one is not read, as it may be of any size."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} cannot be read: it is not a file")
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise DamagedFile(f"{path} is damaged, or is no file of tensors: it does not end like one")
        file.seek(0)
        return file.read()


def _verify(content: bytes) -> None:
    """Raise an exception unless the contents are those that were written; torch.load verifies no checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        if archive.comment:
            if hashlib.sha256(content[:-DIGEST_SIZE]).hexdigest().encode() != content[-DIGEST_SIZE:]:
                raise ValueError("its digest is another one")
            return
        if content[-2:] != b"\0\0":  # the length of the comment
            raise ValueError("its digest is missing")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} is another one")


def reason_of(error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError):  # torch goes on to say how to load it anyway
        return "it holds more than tensors and plain values"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
