"""Read tensors from files that anybody may have written, without running code; or refuse a file in one line."""

import io
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import DamagedFile, RunError
from train.out_of_memory import is_out_of_memory
from train.run.file_kinds import BEFORE_ARCHIVES, python_line

NOT_READABLE = "is damaged, or is no file of tensors"
MOST_SHARED = 100  # times that tensors may share the bytes of a file; that many layers with the same weights are rare
NAMED = 3  # types in a message

# Makes plain dicts of all that `c` holds, with state dicts in place of networks.
PLAIN = (
    "(p := lambda v: p(v.state_dict()) if hasattr(v, 'state_dict') else {k: p(v[k]) for k in v} if isinstance(v, dict)"
    " else v if isinstance(v, (int, float, str, torch.Tensor)) else None)(c)"
)

_stand_ins_in_use = threading.Lock()  # torch has one table of them for all threads


class LeftOut:
    """Takes the place of an object of a type that torch does not know to be harmless."""

    is_network = False

    def __new__(cls, *_: Any) -> "LeftOut":
        """Ignore all arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget what the object was like, except whether it was a network of several modules."""
        self.is_network = isinstance(state, dict) and bool(state.get("_modules"))


# torch fills no other containers than plain ones.
CONTAINERS = {"collections.defaultdict": lambda *_: {}, "collections.deque": lambda *_: []}


def read_tensors(path: Path, content: bytes, *, is_whole: bool) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU.

    Nothing that the file names is imported or called, except what torch knows to be harmless. Values of other types are
    left out of dicts.

    Args:
        path: For messages.
        content: All bytes of the file.
        is_whole: Whether a checksum has shown that no byte is damaged.

    Raises:
        DamagedFile: If it is damaged, or holds something else.
        RunError: If memory runs out.
    """
    holds = f"{path} is whole, but holds" if is_whole else f"{path} is damaged, or holds"
    unknown: list[str] = []
    try:
        with _stand_ins_in_use:
            unknown = _unknown_types(content)
            loaded = _load(content, unknown)
        _require_plain(loaded, has_left_out=bool(unknown), num_bytes=len(content))
    except _Refused as refusal:
        raise DamagedFile(f"{holds} {refusal}") from refusal
    except Exception as error:  # whatever a parser of foreign bytes raises
        if is_out_of_memory(error):
            raise RunError(f"memory ran out while {path} was read") from error
        if unknown or isinstance(error, pickle.UnpicklingError):
            advice = f"if you trust its author, save its weights alone: {python_line(path, PLAIN)}"
            raise DamagedFile(f"{holds} {_named(unknown)}, which could run code; {advice}") from error
        raise DamagedFile(f"{path} {NOT_READABLE}: {reason_of(error)}") from error
    return loaded


def _unknown_types(content: bytes) -> list[str]:
    """Names of types and functions that torch does not know to be harmless; it lists those of archives only."""
    import torch

    if content.startswith(BEFORE_ARCHIVES):
        return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))


def _named(unknown: list[str]) -> str:
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"{', '.join(unknown[:NAMED])}{more}" or "a pickle"


def _load(content: bytes, unknown: list[str]) -> Any:
    import torch

    stand_ins = [(CONTAINERS.get(name, LeftOut), name) for name in unknown]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own old types
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _Refused(Exception):
    """torch has read something that this program does not use. The message says what."""


def _require_plain(loaded: Any, *, has_left_out: bool, num_bytes: int) -> None:
    """Raise an exception unless there is a dict whose tensors fit into a file; remove what was left out."""
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
    """Everything inside one another, once and with its key, after what was left out is removed from dicts."""
    parts, seen = [("", content)], set()
    for key, part in parts:  # which grow
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
    """The bytes of a tensor; raises `_Refused` unless it is an array with memory of its own size."""
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
