"""The GPU that a tensor is on, as far as the engine's choices depend on it.

All choices between a CPU and a GPU are made with `capability_of`, so that tests and counts can make them without a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Capability = tuple[int, int]

_pretended: Capability | None = None


def capability_of(x: Tensor) -> Capability | None:
    """Return the CUDA compute capability of the device of x, for example (9, 0) for an H100; None if it has none."""
    if _pretended is not None:
        return _pretended
    # PyTorch for AMD's GPUs calls its devices "cuda" too, but their capability means something else.
    if x.device.type != "cuda" or torch.version.hip:
        return None
    return torch.cuda.get_device_capability(x.device)


@contextmanager
def as_on_gpu(capability: Capability) -> Iterator[None]:
    """Make all choices as on a GPU of this compute capability, wherever tensors are.

    Triton's interpreter runs kernels on tensors of the CPU, and a step over fake tensors needs no device at all.
    """
    global _pretended
    before, _pretended = _pretended, capability
    try:
        yield
    finally:
        _pretended = before
