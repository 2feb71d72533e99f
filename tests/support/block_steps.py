"""A dense block with a transition or a final norm, and a training step of both."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from models.features import DenseBlock, average
from models.layers import Transition
from tests.support.tensor_measurements import norms, record

# Letters: m layers, k = GROWTH new channels of each, C_i = START + i * k input channels of layer i = 0 ... m - 1,
# BOTTLENECK channels in each, ROWS pixels of all images, KEPT output channels of the transition.
START, GROWTH, BOTTLENECK = 6, 8, 32
IMAGES, SIDES = 2, (6, 4)
ROWS = IMAGES * SIDES[0] * SIDES[1]
KEPT = 5
PEAK_IMAGES = 32
LAYERS = (4, 8, 12, 16)
ENDINGS = ["transition", "norm"]
KINDS = pytest.mark.parametrize("bn_size", [4, None], ids=["bottlenecks", "plain"])


def block_and_transition(
    num_layers: int,
    ending: str = "transition",
    *,
    start: int = START,
    growth: int = GROWTH,
    bn_size: int | None = 4,
    kept: int = KEPT,
    drop_rate: float = 0,
    drop_where: str = "layers",
    dtype: torch.dtype = torch.float32,
) -> tuple[DenseBlock, nn.Module]:
    """Build a block and the module after it, with norms that are not the identity."""
    torch.manual_seed(0)
    inner_rate = drop_rate if drop_where == "convolutions" else 0
    block = DenseBlock(num_layers, start, growth, bn_size, drop_rate, bottleneck_drop_rate=inner_rate)
    num_features = start + num_layers * growth
    last = Transition(num_features, kept, inner_rate) if ending == "transition" else nn.BatchNorm2d(num_features)
    for norm in (*norms(block), *norms(last)):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    return block.to(dtype), last.to(dtype)


def random_input(channels: int = START, dtype: torch.dtype = torch.float32) -> Tensor:
    maps = torch.randn(IMAGES, channels, *SIDES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return maps.to(dtype).requires_grad_()


def call_modules(maps: Tensor, block: nn.Module, ending: nn.Module) -> Tensor:
    result = ending(block(maps))
    return result if isinstance(ending, Transition) else average(result)


Read = Callable[[Tensor, nn.Module, nn.Module], Tensor]
Precision = Callable[[], AbstractContextManager]


def step(
    read: Read,
    maps: Tensor,
    block: nn.Module,
    ending: nn.Module,
    *,
    of_forward: Precision = nullcontext,
    of_backward: Precision = nullcontext,
) -> dict[str, Tensor]:
    """Run forward and backward, with a loss that weighs each value of the result differently."""
    maps = maps.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(2)
    with of_forward():
        result = read(maps, block, ending)
    torch.manual_seed(3)
    grad = torch.randn(result.shape, dtype=torch.float64).to(result.dtype)
    with of_backward():
        result.backward(grad)
    return record(nn.ModuleList([block, ending]), result=result, **{"gradient of maps": maps.grad})
