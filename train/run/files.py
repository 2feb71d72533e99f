"""Files of tensors: written with a digest, and read without trusting them. Nothing in a file is ever run."""

import hashlib
import io
import pickle
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from train.errors import DamagedFile, RunError, UserError
from train.out_of_memory import is_out_of_memory
from train.run.file_kinds import BEFORE_ARCHIVES, HEAD, kind_of, kind_of_archive, model_in, python_line

# The comment of the archive ends with a digest of everything before it.
DIGEST_LABEL = b"sha256 "
DIGEST_SIZE = 64

NOT_READABLE = "is damaged, or is no file of tensors"
MOST_SHARED = 100  # times that tensors may share the bytes of a file; that many layers with the same weights are rare
NAMED = 3  # types in a message

# Makes plain dicts of everything that `c` holds, with state dicts in place of networks.
PLAIN = (
    "(p := lambda v: p(v.state_dict()) if hasattr(v, 'state_dict') else {k: p(v[k]) for k in v} if isinstance(v, dict)"
    " else v if isinstance(v, (int, float, str, torch.Tensor)) else None)(c)"
)

_stand_ins_in_use = threading.Lock()  # torch has one table of them for all threads


def serialize(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file that holds a dict of tensors and plain values, for `torch.load` and `load_tensors`."""
    import torch

    # In memory: where a write fails, torch.save hides the reason in an exception of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = DIGEST_LABEL + bytes(DIGEST_SIZE)
    contents = buffer.getvalue()[:-DIGEST_SIZE]
    return contents + hashlib.sha256(contents).hexdigest().encode()


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU, and verify every byte of the file.

    A file that `torch.save` wrote without our digest is verified by the checksums of its parts.

    Raises:
        DamagedFile: If the file is damaged, or holds something else.
        UserError: If the file cannot be read.
        RunError: If memory runs out.
    """
    try:
        content = _archive(path)
    except (OSError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    try:
        _verify(path, content)
    except DamagedFile:
        raise
    except Exception as error:  # whatever a parser of untrusted bytes raises
        raise DamagedFile(f"{path} {NOT_READABLE}: {reason_of(error)}") from error
    return read_tensors(path, content, is_verified=True)


def _archive(path: Path) -> bytes:
    """Read an archive. A file that does not end like one is not read whole, as it may be of any size."""
    head = head_of(path)
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise DamagedFile(f"{path} {kind_of(path, head) or f'{NOT_READABLE}: it does not end like one'}")
        file.seek(0)
        return file.read()


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, by which its kind is recognised.

    Raises:
        UserError: If the path is a folder, or a pipe, whose reader would wait for a writer.
        OSError: If the file cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path} cannot be read: it is not a file, but a folder{model_in(path)}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: it is not a file")
    with open(path, "rb") as file:
        return file.read(HEAD)


def _verify(path: Path, content: bytes) -> None:
    """Raise an exception unless an archive holds the bytes that were written; torch.load verifies no checksum."""
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


class LeftOut:
    """Takes the place of an object whose type torch does not know to be harmless."""

    is_network = False

    def __new__(cls, *_: Any) -> "LeftOut":
        """Ignore all arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state of the object, but remember whether it was a network of several modules."""
        self.is_network = isinstance(state, dict) and bool(state.get("_modules"))


# torch fills no containers except plain ones.
CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
}


def read_tensors(path: Path, content: bytes, *, is_verified: bool) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU.

    Nothing that the file names is imported or called, except what torch knows to be harmless. Values of other types are
    left out of dicts.

    Args:
        path: The file, for messages.
        content: All bytes of the file.
        is_verified: Whether a checksum has shown that no byte is damaged.

    Raises:
        DamagedFile: If the file is damaged, or holds something else.
        RunError: If memory runs out.
    """
    holds = f"{path} is whole, but holds" if is_verified else f"{path} is damaged, or holds"
    unknown: list[str] = []
    try:
        with _stand_ins_in_use:
            unknown = _unknown_types(content)
            loaded = _load(content, unknown)
        _require_plain(loaded, has_left_out=bool(unknown), num_bytes=len(content))
    except _Refused as refusal:
        raise DamagedFile(f"{holds} {refusal}") from refusal
    except Exception as error:  # whatever a parser of untrusted bytes raises
        if is_out_of_memory(error):
            raise RunError(f"memory ran out while {path} was read") from error
        if unknown or isinstance(error, pickle.UnpicklingError):
            advice = f"if you trust its author, save its weights alone: {python_line(path, PLAIN)}"
            raise DamagedFile(f"{holds} {_named(unknown)}, which could run code; {advice}") from error
        raise DamagedFile(f"{path} {NOT_READABLE}: {reason_of(error)}") from error
    return loaded


def _unknown_types(content: bytes) -> list[str]:
    """Return the names of types and functions that torch does not know to be harmless; it lists those of archives."""
    import torch

    if content.startswith(BEFORE_ARCHIVES):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))


def _named(unknown: list[str]) -> str:
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"{', '.join(unknown[:NAMED])}{more}" or "a pickle"


def _load(content: bytes, unknown: list[str]) -> Any:
    import torch

    stand_ins: list[Any] = [(CONTAINERS.get(name, LeftOut), name) for name in unknown]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own old types
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _Refused(Exception):
    """torch has read something that this program does not use. The message says what it is."""


def _require_plain(loaded: Any, *, has_left_out: bool, num_bytes: int) -> None:
    """Raise an exception unless there is a dict whose tensors fit into the file; remove what was left out."""
    import torch

    values = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    sizes = [_size(key, part) for key, part in _parts(loaded) if isinstance(part, torch.Tensor)]
    if any(isinstance(value, LeftOut) and value.is_network for value in values) or (has_left_out and not sizes):
        raise pickle.UnpicklingError("the weights are in what was left out")
    if not isinstance(loaded, dict):
        raise _Refused(f"no dict of tensors, but {type(loaded).__name__}")
    if sum(sizes) > MOST_SHARED * num_bytes:
        raise _Refused(f"tensors of {sum(sizes):,} bytes together, but only {num_bytes:,} bytes for them")


def _parts(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each nested value once, with its key, after left-out values have been removed from dicts."""
    parts: list[tuple[Any, Any]] = [("", content)]
    seen = set()
    for key, part in parts:  # the list grows meanwhile
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield key, part
        if isinstance(part, dict):
            for name in [name for name, value in part.items() if isinstance(value, LeftOut)]:
                del part[name]
            parts += part.items()
        elif isinstance(part, list | tuple | set):
            parts += [(key, value) for value in part]


def _size(key: Any, tensor: Any) -> int:
    """Return the bytes of a tensor; raise `_Refused` unless it is an array with memory of its own size."""
    is_array = str(tensor.layout) == "torch.strided" and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    size = tensor.numel() * tensor.element_size()
    if not is_array or size > tensor.untyped_storage().nbytes():
        raise _Refused(f"{str(key)[:80]!r}, a tensor that is sparse, quantized, nested, expanded or without values")
    return size


def reason_of(error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
