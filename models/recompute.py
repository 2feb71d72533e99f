"""Recomputation of activations that leaves running statistics as the plain forward pass left them."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .tracing import tracer_of, warn


class FrozenRunningStatistics:
    """Normalise as usual inside the block, but leave the running statistics of `norm` alone.

    The layer works on copies of its buffers, a few numbers for each channel. It cannot do without any: autograd keeps
    them, and a second call must keep as many tensors as the first. Only this one module is touched, so that replicas
    in other threads go on undisturbed. The block can be entered again: each backward pass over a retained graph does.

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


def may_recompute(maps: Tensor) -> bool:
    """Whether a function of maps can be computed again in the backward pass; if not, a warning says why.

    Compilers and exporters know recomputation. Other tracers and transforms do not.
    """
    tracer = "" if torch.compiler.is_compiling() else tracer_of(maps)
    if tracer:
        warn(f"{tracer} can only follow plain modules")
    return not tracer


def recompute_in_backward(function: Callable[..., Tensor], *features: Tensor, norm: nn.Module) -> Tensor:
    """Call `function(*features)` now and drop what it keeps for the backward pass, which calls it a second time.

    The second call sees the same autocast state. It may not draw random numbers: their state is not kept, because
    reading it would make the device wait at every layer.

    Compilers that follow this call plan the second one themselves: they take both calls for one, whose statistics are
    updated once, and know no context around the second.

    Args:
        function: What to compute; normalises with `norm` and with no other layer that has running statistics.
        features: Its inputs. They stay alive until the backward pass.
        norm: The batch norm layer whose running statistics the second call must not update again.

    References:
        Pleiss et al., Memory-Efficient Implementation of DenseNets, 2017 (arXiv:1707.06990).
    """
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    if not torch.compiler.is_compiling():
        settings["context_fn"] = lambda: (nullcontext(), FrozenRunningStatistics(norm))
    return checkpoint(function, *features, **settings)
