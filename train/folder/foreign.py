"""Weights that other programs have saved, in whichever form torch.save had then."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

from train.folder.saving import DamagedFile, load_tensors, reason_of
from train.terminal import warn

# How files of torch.save began before it wrote archives (PyTorch 1.5 and earlier): a pickled number, the same in all.
# torchvision's DenseNets for ImageNet are such files.
BEFORE_ARCHIVES = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# torchvision and torch.hub put the beginning of the SHA-256 digest into the name.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth?")


def load_foreign(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU. Nothing else is unpickled.

    Archives are verified as `load_tensors` does it. The form before has no checksum; if the name of the file holds
    none either, a warning says so.

    Raises:
        DamagedFile: If the file is damaged, or is no such file.
        UserError: If it cannot be read.
    """
    if not _is_from_before_archives(path):
        return load_tensors(path)
    import torch

    content = path.read_bytes()
    named = DIGEST_IN_NAME.search(path.name)
    if named and not hashlib.sha256(content).hexdigest().startswith(named[1]):
        raise DamagedFile(f"{path} is damaged: its digest is not the one in its name")
    if not named:
        warn(f"{path} is in torch's old form, which has no checksum: damage would not be seen")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser of foreign bytes raises
        raise DamagedFile(f"{path} is damaged, or is no file of tensors: {reason_of(error)}") from error
    if not isinstance(loaded, dict):
        raise DamagedFile(f"{path} holds no dict of tensors, but {type(loaded).__name__}")
    return loaded


def _is_from_before_archives(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(BEFORE_ARCHIVES)) == BEFORE_ARCHIVES
    except OSError:
        return False  # load_tensors says why
