"""Which bottleneck layers are computed by fused products, and how their kernels divide the work.

A narrow layer is limited by memory: kernels that compute norm, ReLU, product and sums in one pass save passes. Where
layers are wide, the products themselves take the time, and cuDNN's are faster than those here. Everything is decided by
shape, dtype and compute capability, never by timing: other block sizes round differently, and equal runs give equal
bits. All block sizes here compile without spilling registers to memory; `python -m tests.compile_kernels` checks it.

b channels of a bottleneck, k that a layer makes.
"""

from typing import NamedTuple

import torch

from ..device import Capability

OLDEST = (8, 0)  # Triton does not use the tensor cores of older GPUs
WIDEST_BOTTLENECK = 64  # a program holds all channels of a bottleneck
MOST_NEW = 32  # a program holds all new channels
NARROWEST = 16  # the smallest side of a product on tensor cores


class Blocks(NamedTuple):
    """How a kernel divides its work.

    Attributes:
        rows: Rows of a tile.
        warps: Warps of a program.
        stages: Iterations of a loop whose loads are under way at the same time.
        columns: Channels of the layer's input that a program reads at a time, if it reads any.
        registers: Most registers of a thread. Where this is None, the assembler decides, and may spill a few to run
            more programs at once.
    """

    rows: int
    warps: int
    stages: int
    columns: int = 32
    registers: int | None = None


class Plan(NamedTuple):
    """How the products of a bottleneck layer are computed.

    Attributes:
        precision: How products of float32 are computed: "tf32", or "tf32x3", three products whose sum is as good as
            float32. It has no meaning for 16-bit rows.
        block_b: The power of two that holds b.
        block_k: The power of two that holds k.
        bottleneck: Blocks of the forward pass, 1x1.
        new_maps: Blocks of the forward pass, 3x3.
        backward_3x3: Blocks of the gradient of the bottleneck.
        backward_3x3_weight: Blocks of the gradient of the 3x3 weight.
        backward_1x1: Blocks of the gradients of the layer's input and of the 1x1 weight, or of the first alone.
        backward_1x1_weight: Blocks of the second; None if one kernel computes both. Two kernels read the layer's input
            once more, but need fewer registers.
    """

    precision: str
    block_b: int
    block_k: int
    bottleneck: Blocks
    new_maps: Blocks
    backward_3x3: Blocks
    backward_3x3_weight: Blocks
    backward_1x1: Blocks
    backward_1x1_weight: Blocks | None


def plan(capability: Capability, dtype: torch.dtype, b: int, k: int) -> Plan | None:
    """Return how the fused products of a bottleneck layer are computed; None if cuDNN is to compute them.

    float32 is multiplied as TF32 if `torch.backends.cudnn.conv.fp32_precision` says so, which is the default, else with
    the accuracy of float32. In TF32, tensor cores cut off the bits that they do not use, where cuDNN may round. The
    setting is read here, so a plan belongs to both passes of a step.

    Args:
        capability: The compute capability of the GPU.
        dtype: The dtype of rows.
        b: Channels of the bottleneck.
        k: Channels that the layer makes.
    """
    if capability < OLDEST or b > WIDEST_BOTTLENECK or k > MOST_NEW:
        return None
    is_float32, is_sm_120 = dtype == torch.float32, capability >= (12, 0)  # whose code needs a few registers more
    is_exact = is_float32 and precision_of_products() != "tf32"
    return Plan(
        precision="tf32x3" if is_exact else "tf32",
        block_b=_power_of_two(b),
        block_k=_power_of_two(k),
        bottleneck=_bottleneck(is_exact=is_exact, is_sm_120=is_sm_120),
        new_maps=Blocks(rows=64, warps=8 if is_exact else 4, stages=1),
        backward_3x3=Blocks(rows=32 if is_exact else 64, warps=8, stages=2),
        backward_3x3_weight=Blocks(
            rows=32 if is_exact else 64,
            warps=4,
            # Tensor cores of sm_90 and later want TF32 transposed, which asynchronous loads do 4 bytes at a time.
            stages=1 if is_float32 else 2,
        ),
        backward_1x1=Blocks(
            rows=32, warps=4, stages=1, columns=16 if is_exact or (is_float32 and is_sm_120) else 32, registers=255
        ),
        backward_1x1_weight=Blocks(rows=32, warps=4, stages=1) if is_exact else None,
    )


def precision_of_products() -> str:
    """Return how cuDNN multiplies float32: "tf32", or anything else for float32 itself."""
    # `torch.backends.cudnn.allow_tf32` says the same, but raises an error once any of the newer settings was used.
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # PyTorch's types lack it


def _bottleneck(*, is_exact: bool, is_sm_120: bool) -> Blocks:
    if is_sm_120:
        return Blocks(rows=32 if is_exact else 64, warps=4, stages=2, registers=255)
    return Blocks(rows=64 if is_exact else 128, warps=8, stages=2)


def _power_of_two(channels: int) -> int:
    return max(NARROWEST, 1 << (channels - 1).bit_length())
