"""Weights that other programs have saved: in any form that torch.save ever wrote, or as safetensors."""

import hashlib
import re
from pathlib import Path
from typing import Any

from train.errors import DamagedFile, UserError
from train.run.file_kinds import BEFORE_ARCHIVES, is_safetensors
from train.run.files import head_of, load_tensors, read_tensors, reason_of
from train.run.safetensors_files import read_safetensors
from train.terminal import warn

# The name contains the beginning of the SHA-256 digest in files of torchvision and torch.hub, of SHA-1 in pytorchcv's.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth?|safetensors)$")


def load_legacy_weights(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU, as `load_tensors` does, but from other forms too.

    Archives are verified, and safetensors files with a digest. Others have no checksum; if the name of the file
    contains no digest either, a warning says so.

    Raises:
        DamagedFile: If the file is damaged, or holds something else.
        UserError: If the file cannot be read, or is the checkpoint of a run that has not chosen any weights yet.
        RunError: If memory runs out.
    """
    try:
        head = head_of(path)
        if not (head.startswith(BEFORE_ARCHIVES) or is_safetensors(head)):
            weights = load_tensors(path)
            if weights.get("rows") == [] and weights.get("chosen") == {}:
                raise UserError(f"{path} is of a run that has not finished an epoch, and so has no chosen weights yet")
            return weights
        content = path.read_bytes()
    except (OSError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from error
    is_verified = _verify_by_name(path, content)
    if is_safetensors(head):
        form, (weights, is_whole) = "safetensors", read_safetensors(path, content)
        is_verified |= is_whole
    else:
        form, weights = "torch's old form", read_tensors(path, content, is_verified=is_verified)
    if not is_verified:
        warn(f"{path} is in {form}, which has no checksum: damage would not be noticed")
    return weights


def _verify_by_name(path: Path, content: bytes) -> bool:
    """Return whether the name of a file contains the digest of its contents.

    Raises:
        DamagedFile: If it contains another digest.
    """
    named = DIGEST_IN_NAME.search(path.name)
    if named is None:
        return False
    if any(hashlib.new(kind, content).hexdigest().startswith(named[1]) for kind in ("sha256", "sha1")):
        return True
    if named[1].isdecimal():  # a date, or the number of a step
        return False
    raise DamagedFile(f"{path} is damaged: its digest is not the one in its name")
