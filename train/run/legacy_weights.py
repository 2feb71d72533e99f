"""Weights that other programs have saved, in whichever form torch.save had then, or as safetensors."""

import hashlib
import re
from pathlib import Path
from typing import Any

from train.errors import DamagedFile, UserError
from train.run.file_kinds import BEFORE_ARCHIVES, is_safetensors
from train.run.files import head_of, load_tensors
from train.run.reading import read_tensors, reason_of
from train.terminal import warn

# torchvision and torch.hub put the beginning of the SHA-256 digest into the name.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth?|safetensors)$")


def load_foreign(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU, as `load_tensors` does; nothing runs.

    Archives are verified too. Other forms have no checksum; if the name of the file holds none either, a warning says
    so.

    Raises:
        DamagedFile: If the file is damaged, or holds something else.
        UserError: If it cannot be read.
    """
    try:
        head = head_of(path)
        if not (head.startswith(BEFORE_ARCHIVES) or is_safetensors(head)):
            return load_tensors(path)
        content = path.read_bytes()
    except (OSError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    form = "safetensors" if is_safetensors(head) else "torch's old form"
    is_whole = _is_verified(path, content)
    if is_safetensors(head):
        weights = _read_safetensors(path, content)
    else:
        weights = read_tensors(path, content, is_whole=is_whole)
    if not is_whole:
        warn(f"{path} is in {form}, which has no checksum: damage would not be seen")
    return weights


def _is_verified(path: Path, content: bytes) -> bool:
    """Whether the name of a file holds the digest of its contents.

    Raises:
        DamagedFile: If it holds another one.
    """
    named = DIGEST_IN_NAME.search(path.name)
    if named and not hashlib.sha256(content).hexdigest().startswith(named[1]):
        raise DamagedFile(f"{path} is damaged: its digest is not the one in its name")
    return bool(named)


def _read_safetensors(path: Path, content: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged, or is no safetensors file: {reason_of(error)}") from error
