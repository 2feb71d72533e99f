"""Files of the format safetensors. Ours have a digest in their metadata, which other programs ignore.

References:
    The format: 8 bytes with the length of a header, a header of JSON, and the bytes of all tensors
    (https://huggingface.co/docs/safetensors).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.errors import DamagedFile, UserError

if TYPE_CHECKING:
    from torch import Tensor

METADATA, DIGEST = "__metadata__", "sha256"  # keys in the header and in the metadata
PYTORCH = {"format": "pt"}  # by which other programs know who wrote the file
LENGTH = 8  # bytes


def serialize_safetensors(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file that holds tensors and texts by name, and a digest of all of them."""
    from safetensors.torch import save

    texts = {**PYTORCH, **metadata}
    return save(dict(tensors), {**texts, DIGEST: _digest(save(dict(tensors), texts))})


def read_safetensors(path: Path, content: bytes) -> "tuple[dict[str, Tensor], bool]":
    """Read the tensors of a file.

    Args:
        path: The file, for messages.
        content: Its bytes.

    Returns:
        The tensors by name, and whether a digest has shown that they are whole.

    Raises:
        DamagedFile: If the file is damaged, or has another form.
        UserError: If the package that reads it is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        need = "is a safetensors file, and the package safetensors is missing: pip install safetensors"
        raise UserError(f"{path} {need}") from error
    try:
        tensors = load(content)
        digest = metadata_in(content).get(DIGEST)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedFile(f"{path} is damaged, or is no safetensors file: {reason}") from error
    if digest is not None and digest != _digest(content):
        raise DamagedFile(f"{path} is damaged: its digest is another one")
    return tensors, digest is not None


def metadata_in(content: bytes) -> dict[str, str]:
    """Return the texts by name in a file that has been read as safetensors."""
    return _header(content).get(METADATA) or {}


def _header(content: bytes) -> dict[str, Any]:
    return json.loads(content[LENGTH : LENGTH + _header_size(content)])


def _header_size(content: bytes) -> int:
    return int.from_bytes(content[:LENGTH], "little")


def _digest(content: bytes) -> str:
    """The SHA-256 digest of all that a file holds, except for the digest itself."""
    header = _header(content)
    header.get(METADATA, {}).pop(DIGEST, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(content)[LENGTH + _header_size(content) :])
    return digest.hexdigest()
