"""Training steps of networks whose blocks run by kernels: on a GPU if there is one, else in Triton's interpreter."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from models import DenseNet
from models.buffer.device import Capability, as_on_gpu
from models.buffer.kernels import check
from models.buffer.kernels.launch import Launch, recorded

from .tensor_measurements import naive_and, random_images, record
from .triton_interpreter import DEVICE

# Kernels for norms alone, beside convolutions of a library; and fused products, for layers that are narrow enough.
LIBRARY, FUSED = (7, 5), (9, 0)
CAPABILITIES = pytest.mark.parametrize("capability", [LIBRARY, FUSED], ids=["library", "fused"])

# As many layers as it takes to read and to add to what others have written; every layer takes a second.
TINY = {"growth_rate": 3, "block_config": (2, 1), "num_init_features": 5, "num_classes": 5}

# The interpreter computes products of both precisions alike, and those of "tf32" in fewer programs.
EXACT = "ieee" if DEVICE == "cuda" else "tf32"


@contextmanager
def by_kernels(capability: Capability, precision: str = EXACT) -> Iterator[list[Launch]]:
    """Run dense blocks by kernels, as on a GPU of this compute capability, and list the launches.

    Kernels are used without the check before their first use, which takes seconds in the interpreter and has tests of
    its own. In the interpreter, memory that nobody has written holds NaN.

    Args:
        capability: The compute capability.
        precision: How products of float32 are computed: "ieee" or "tf32".
    """
    launches: list[Launch] = []
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    # On a GPU, some operations around the blocks have no deterministic version.
    torch.use_deterministic_algorithms(DEVICE == "cpu")
    trusted = patch.object(check, "_difference", return_value=""), patch.dict(check._answers, clear=True)
    try:
        with as_on_gpu(capability), recorded(launches.append), trusted[0], trusted[1]:
            yield launches
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.conv.fp32_precision = before


def naive_and_buffer(strategy: str = "buffer", **config: object) -> list[DenseNet]:
    """Build two equal networks; see `naive_and`."""
    return [network.to(DEVICE) for network in naive_and(strategy, **(TINY | config))]


def few_images(side: int = 5, images: int = 2) -> Tensor:
    """Images (N, 3, H, H + 1)."""
    return random_images(side=side + 1, images=images)[:, :, :side].contiguous().to(DEVICE)


Read = Callable[[nn.Module, Tensor], Tensor]


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def step(
    network: nn.Module,
    images: Tensor,
    *,
    read: Read = logits_of,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Tensor]:
    """Run forward and backward with a gradient of random numbers, and return a record of the step."""
    network.zero_grad()
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(1)
    with precision():
        result = read(network, images)
    result.backward(random_gradient(result))
    return record(network, result=result, **{"gradient of images": images.grad})


def random_gradient(result: Tensor) -> Tensor:
    numbers = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return numbers.to(result)
