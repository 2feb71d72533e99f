"""What torch.save has written, read without running code; or one line that says what is wrong with it."""

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.errors import DamagedFile
from train.folder.file_kinds import python_line
from train.folder.pickled import PROTOCOL, STAND_INS, Found, LeftOut, Refused
from train.out_of_memory import is_out_of_memory

NOT_READABLE = "is damaged, or is no file of tensors"


def read_tensors(path: Path, content: bytes, inspect: Callable[[bytes], Found], *, is_whole: bool) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU.

    Values of some other harmless types, such as argparse.Namespace and numbers of NumPy, are left out.

    Args:
        path: For messages.
        content: All bytes of the file.
        inspect: Looks into its pickle.
        is_whole: Whether a checksum has shown that no byte is damaged.

    Raises:
        DamagedFile: If it is damaged, or holds something else.
    """
    import torch

    holds, found = "is whole, but holds" if is_whole else "holds", Found()
    try:
        found = inspect(content)
        if found.unknown:
            raise DamagedFile(f"{path} {holds} {_unknown(path, found)}")
        allowed = [(STAND_INS[name], name) for name in sorted(found.left_out)]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own old types
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DamagedFile:
        raise
    except Refused as refusal:
        raise DamagedFile(f"{path} {holds} {refusal}") from refusal
    except Exception as error:  # whatever a parser of foreign bytes raises
        if is_out_of_memory(error):
            raise
        if found.protocol > PROTOCOL:
            raise DamagedFile(f"{path} {holds} {_other_protocol(path, found)}") from error
        raise DamagedFile(f"{path} {NOT_READABLE}: {reason_of(error)}") from error
    if not isinstance(loaded, dict):
        raise DamagedFile(f"{path} holds no dict of tensors, but {type(loaded).__name__}")
    if found.left_out:
        _leave_out(loaded)
    return loaded


def _unknown(path: Path, found: Found) -> str:
    """Say what a file holds, and how to save its weights alone."""
    what = f"{found.unknown[0]}, which could run code"
    expression = found.expression()
    if expression is None:
        return f"{what}, and no weights beside it"
    return f"{what}; if you trust its author, save its weights alone: {python_line(path, expression)}"


def _other_protocol(path: Path, found: Found) -> str:
    what = f"a pickle of protocol {found.protocol}, and torch reads only {PROTOCOL} without running code"
    expression = found.expression() or "c"
    return f"{what}; if you trust its author, save its weights anew: {python_line(path, expression)}"


def _leave_out(content: dict[Any, Any]) -> None:
    """Remove stand-ins from dicts inside one another."""
    parts, seen = [content], set()
    while parts:
        part = parts.pop()
        if id(part) not in seen:
            seen.add(id(part))
            for key in [key for key, value in part.items() if isinstance(value, LeftOut)]:
                del part[key]
            parts += [value for value in part.values() if isinstance(value, dict)]


def reason_of(error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, pickle.UnpicklingError):  # torch goes on to say how to load it anyway
        return "its pickle is not one that torch reads without running code"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
