"""The way into the engine: which dense blocks run over a feature buffer, and which modules are called instead.

A block that runs over a buffer keeps little for the backward pass, but calls none of its modules: only their
parameters, buffers and settings are read. Where that would lose something, the modules are called, and a warning says
why.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..layers import call_in_order
from ..recompute import recompute_in_backward
from ..tracing import tracer_of, warn
from .eligible import why_call_itself, why_call_layers, why_call_stem, why_call_transition, why_not_from
from .function import block_over_buffer
from .memory_plan import BlockWithTransition, bottlenecks_for_free, sizes_of

BUFFER_STRATEGIES = ("buffer", "buffer_fast", "buffer_small")
SMALL = BUFFER_STRATEGIES[-1]


def is_buffer_wanted(strategy: str, x: Tensor, *, training: bool) -> bool:
    """Tell whether to use feature buffers: in training, for gradients, and where no tracer needs plain modules.

    A warning names the tracer.
    """
    if not (strategy in BUFFER_STRATEGIES and training and torch.is_grad_enabled()):
        return False
    tracer = tracer_of(x)
    if tracer:
        warn(f"{tracer} can only follow plain modules")
    return not tracer


def run_block(block: nn.Module, x: Tensor, *, strategy: str) -> Tensor | None:
    """Run a dense block alone over a feature buffer.

    Args:
        block: A `DenseBlock`.
        x: (N, C, H, W).
        strategy: One of `BUFFER_STRATEGIES`.

    Returns:
        All feature maps of the block, (N, C + m * k, H, W); None if its layers have to be called, mostly after a
        warning.
    """
    if not _has_statistics(x):
        return None
    reason = why_call_layers(block, x) or why_not_from(block, x)
    if reason:
        warn(reason)
        return None
    (count,) = _bottlenecks_kept(x, [(block, None)], [True], strategy=strategy)
    return block_over_buffer(x, block, None, num_bottlenecks=count, is_small=strategy == SMALL)


def run_stem(modules: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Call the modules before the first block; norm, ReLU and pooling of the ImageNet form run again in backward.

    Args:
        modules: Convolution, and norm, ReLU and pooling after it; or any others.
        images: (N, I, H, W), of I channels.
    """
    x, rest = call_in_order(modules[:1], images), modules[1:]
    is_imagenet = [type(module) for module in rest] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    if not is_imagenet or why_call_stem(rest, x):
        return call_in_order(rest, x)
    return recompute_in_backward(partial(call_in_order, rest), x, norm=rest[0])


def run_blocks(blocks: Sequence[tuple[nn.Module, nn.Module]], x: Tensor, *, strategy: str, averages: bool) -> Tensor:
    """Run each dense block with its transition over one feature buffer.

    Where a transition has to be called, its block runs over a buffer of its own, if it can.

    Args:
        blocks: Each block with its transition; the last one with the final norm.
        x: Input of the first block (N, C, H, W).
        strategy: One of `BUFFER_STRATEGIES`.
        averages: Whether ReLU and the average over all pixels may follow the final norm at once.

    Returns:
        (N, C') with the average. Otherwise, and with `averages` where the last modules had to be called,
        (N, C', H', W').
    """
    if not _has_statistics(x):
        return call_in_order([module for pair in blocks for module in pair], x)
    over_buffer = [_may_share_buffer(block, transition, x) for block, transition in blocks]
    counts = _bottlenecks_kept(x, blocks, over_buffer, strategy=strategy)
    for i, (block, transition) in enumerate(blocks):
        if over_buffer[i] and _has_statistics(x) and not why_not_from(block, x):
            is_last = i == len(blocks) - 1
            x = block_over_buffer(
                x,
                block,
                transition,
                num_bottlenecks=counts[i],
                averages=averages and is_last,
                is_small=strategy == SMALL,
            )
        else:
            x = transition(block(x))
    return x


def _has_statistics(x: Tensor) -> bool:
    """Tell whether x (N, C, H, W) has enough values for batch norm; if not, the norm layers raise the error."""
    return x.dim() == 4 and x[:, 0].numel() > 1


def _may_share_buffer(block: nn.Module, transition: nn.Module, x: Tensor) -> bool:
    """Tell whether a block and its transition may run over one buffer; if not, a warning says why.

    A block whose layers have to be called gives the warning itself when it is called.
    """
    reason = why_call_itself(block) or why_call_transition(transition, x)
    of_layers = why_call_layers(block, x)
    if reason and not of_layers:
        warn(reason)
    return not (reason or of_layers)


def _bottlenecks_kept(
    x: Tensor, blocks: Sequence[BlockWithTransition], over_buffer: Sequence[bool], *, strategy: str
) -> tuple[int, ...]:
    """Compute how many of its last layers each block lets keep their bottlenecks for the backward pass.

    Args:
        x: Input of the first block (N, C, H, W).
        blocks: Each block with its transition.
        over_buffer: Which of them run over a buffer.
        strategy: "buffer_fast" keeps all bottlenecks, the others those that do not raise the peak of memory.
    """
    if strategy == "buffer_fast":
        return tuple(len(list(block.children())) for block, _ in blocks)
    return bottlenecks_for_free(tuple(sizes_of(x, blocks, over_buffer)), is_small=strategy == SMALL)
