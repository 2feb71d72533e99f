"""Recomputation of activations in the backward pass that updates running statistics only once."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .tracing import tracer_of, warn


class FrozenRunningStatistics:
    """A context in which a norm layer normalises as usual, but leaves its running statistics alone.

    Inside, the layer works on copies of its buffers, a few numbers for each channel. It cannot do without buffers:
    autograd saves them, and the second call has to save as many tensors as the first. Only this one module is touched,
    so that replicas in other threads are not disturbed. The context can be entered again, as each backward pass over a
    retained graph does.

    Args:
        norm: A batch norm layer in training or eval mode.
    """

    def __init__(self, norm: nn.Module):
        self.norm = norm

    def __enter__(self) -> None:
        self.buffers = dict(self.norm.named_buffers(recurse=False))
        for name, buffer in self.buffers.items():
            setattr(self.norm, name, buffer.clone())

    def __exit__(self, *exception: object) -> None:
        for name, buffer in self.buffers.items():
            setattr(self.norm, name, buffer)


def may_recompute(x: Tensor) -> bool:
    """Tell whether a function of x can be computed again in the backward pass; if not, a warning says why.

    Compilers and exporters know recomputation. Other tracers and transforms do not.
    """
    tracer = "" if torch.compiler.is_compiling() else tracer_of(x)
    if tracer:
        warn(f"{tracer} can only follow plain modules")
    return not tracer


def recompute_in_backward(function: Callable[..., Tensor], *features: Tensor, norm: nn.Module) -> Tensor:
    """Call `function(*features)` now, keep nothing but its inputs, and call it again in the backward pass.

    The second call sees the same autocast state. It must not draw random numbers: their state is not saved, because
    reading it would make the device wait at every layer.

    Compilers that follow this call plan the second one themselves: they see both calls as one, which updates the
    statistics once, and support no context around the second.

    Args:
        function: Normalises with `norm` and with no other layer that has running statistics.
        features: Its inputs. They stay alive until the backward pass.
        norm: The batch norm layer whose running statistics the second call must not update again.

    Returns:
        The result of the function.

    References:
        Pleiss et al., Memory-Efficient Implementation of DenseNets, 2017 (arXiv:1707.06990).
    """
    if torch.compiler.is_compiling():
        return checkpoint(function, *features, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(
        function,
        *features,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), FrozenRunningStatistics(norm)),
    )
