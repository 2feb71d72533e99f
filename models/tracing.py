"""Tracers, compilers and transforms that follow the operations of plain modules and cannot follow a feature buffer."""

import warnings

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.fx.experimental.proxy_tensor import get_proxy_mode

PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)


def tracer_of(x: Tensor) -> str:
    """Name the tracer, compiler or transform that a tensor comes from; empty if there is none."""
    if torch.compiler.is_compiling():
        return "torch.compile or torch.export"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if isinstance(x, Proxy):
        return "torch.fx"
    if get_proxy_mode() is not None:
        return "make_fx"
    if x.is_meta:
        return "device meta"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return ""


def is_plain(tensor: Tensor | None) -> bool:
    """Tell whether a tensor, if there is one, is of no subclass that could compute something else."""
    return tensor is None or type(tensor) in PLAIN_TENSORS


def warn(reason: str) -> None:
    """Warn that modules are called where the strategy would have saved memory."""
    warnings.warn(f"a part of the network runs module by module and keeps more memory: {reason}", stacklevel=1)


# Compilers then call it while they compile, instead of stopping at a function that they cannot follow.
vars(warn)["_dynamo_marked_constant"] = True
