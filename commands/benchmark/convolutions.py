"""The convolutions of a step without all else: a lower bound of its time, for strategies that use a library's."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commands.benchmark.step import MEMORY_FORMATS, PRECISIONS, Case
from commands.benchmark.variants import Variant


class _Convolution(NamedTuple):
    """A convolution of a step.

    Attributes:
        x: Its input.
        weight: Its weight.
        grad: The gradient of its result.
        stride: Its stride.
        padding: Its padding.
        has_grad_x: Whether a step computes the gradient of its input, which the images do not need.
    """

    x: Tensor
    weight: Tensor
    grad: Tensor
    stride: list[int]
    padding: list[int]
    has_grad_x: bool

    def backward(self) -> None:
        wanted = [self.has_grad_x, True, False]
        geometry = (self.stride, self.padding, [1, 1], False, [0, 0], 1)
        torch.ops.aten.convolution_backward.default(self.grad, self.x, self.weight, None, *geometry, wanted)


class ConvolutionsAlone:
    """All convolutions of a plain network's step: each once forward, then each once backward with both gradients.

    Their operands are dense and lie in memory as in a step. Inputs share their memory, and so do gradients: a step has
    written them shortly before it reads them, too.

    Args:
        naive: The plain network.
        case: The network and the batch.

    Attributes:
        device: The device that they run on.
    """

    def __init__(self, naive: Variant, case: Case):
        self.device = case.device
        of_weights, autocast = PRECISIONS[case.precision]
        dtype, memory_format = autocast or of_weights, MEMORY_FORMATS[naive.memory_format]
        found = _shapes(naive, case)
        numbers = [
            max(shape.numel() for shape in shapes) for shapes in zip(*(sizes for _, sizes in found), strict=True)
        ]
        inputs, gradients = (torch.randn(count, dtype=dtype, device=self.device) for count in numbers)
        self.convolutions = [
            _Convolution(
                x=_shaped(inputs, of_x, naive.memory_format),
                weight=torch.randn(module.weight.shape).to(self.device, dtype, memory_format=memory_format),
                grad=_shaped(gradients, of_y, naive.memory_format),
                stride=[*module.stride],
                padding=[*module.padding],
                has_grad_x=i > 0,
            )
            for i, (module, (of_x, of_y)) in enumerate(found)
        ]

    def __call__(self) -> None:
        """Compute all of them."""
        for one in self.convolutions:
            F.conv2d(one.x, one.weight, None, one.stride, one.padding)
        for one in reversed(self.convolutions):
            one.backward()


def _shapes(naive: Variant, case: Case) -> list[tuple[nn.Conv2d, tuple[torch.Size, torch.Size]]]:
    """Find all convolutions in the order of a step, each with the shapes of its input and its result."""
    found: list[tuple[nn.Conv2d, tuple[torch.Size, torch.Size]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], result: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, (inputs[0].shape, result.shape)))

    with torch.device("meta"), torch.no_grad():
        network = naive.build(case.network)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(note)
        network(torch.empty(case.batch_size, 3, case.network.image_size, case.network.image_size))
    return found


def _shaped(memory: Tensor, shape: torch.Size, memory_format: str) -> Tensor:
    """View the beginning of some memory as feature maps (N, C, H, W)."""
    n, c, height, width = shape
    values = memory[: shape.numel()]
    if memory_format == "channels_last":
        return values.view(n, height, width, c).permute(0, 3, 1, 2)
    return values.view(shape)
