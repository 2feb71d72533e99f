"""When a dense block runs over a feature buffer, alone or with what reads it, and with how many bottlenecks kept."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tracing import tracer_of, warn
from .eligible import why_call_block, why_not_from
from .function import layers_of, read_block
from .memory_plan import bottlenecks_for_free
from .sizes import Stage, sizes_of

BUFFER_STRATEGIES = ("buffer", "buffer_fast")


def is_buffer_wanted(strategy: str, maps: Tensor, *, training: bool) -> bool:
    """Whether feature buffers are to be used: in training, for gradients, and where no tracer needs plain modules.

    A warning names the tracer.
    """
    if not (strategy in BUFFER_STRATEGIES and training and torch.is_grad_enabled()):
        return False
    tracer = tracer_of(maps)
    if tracer:
        warn(f"{tracer} can only follow plain modules")
    return not tracer


def has_statistics(maps: Tensor) -> bool:
    """Whether maps (N, C, H, W) have values enough for batch norm; otherwise the norm layers themselves complain."""
    return maps.dim() == 4 and maps[:, 0].numel() > 1


def run_block(block: nn.Module, maps: Tensor, *, strategy: str) -> Tensor | None:
    """Run a dense block alone over a feature buffer.

    Args:
        block: A `DenseBlock`.
        maps: (N, C, H, W).
        strategy: One of `BUFFER_STRATEGIES`.

    Returns:
        All maps of the block, (N, C + m * k, H, W); None, after a warning, if its layers have to be called.
    """
    if not has_statistics(maps):
        return None
    reason = why_call_block(block, maps) or why_not_from(block, maps)
    if reason:
        warn(reason)
        return None
    (count,) = bottlenecks_kept(maps, [(block, None)], [True], strategy=strategy)
    return read_block(maps, block, None, num_bottlenecks=count)


def bottlenecks_kept(
    maps: Tensor, stages: Sequence[Stage], over_buffer: Sequence[bool], *, strategy: str
) -> tuple[int, ...]:
    """Return how many of its last layers each block lets keep their bottlenecks for the backward pass.

    Args:
        maps: The first block starts with them, (N, C, H, W).
        stages: Each block with what reads it.
        over_buffer: Which of them run over a buffer.
        strategy: "buffer_fast" keeps all bottlenecks, "buffer" those that do not raise the peak of memory.
    """
    if strategy == "buffer_fast":
        return tuple(len(layers_of(block)) for block, _ in stages)
    return bottlenecks_for_free(tuple(sizes_of(maps, stages, over_buffer)))
