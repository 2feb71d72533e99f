"""Which operations a block uses on the device of its rows: kernels where they exist and work, else those of PyTorch."""

from torch import Tensor

from ..device import capability_of
from ..rows import Shape
from ..workspace import Workspace
from .check import are_usable
from .table import Plan, plan


def workspace_for(rows: Tensor, shape: Shape, *, is_small: bool, is_forward: bool) -> Workspace:
    """Return the operations on the rows of a feature buffer, for its forward or backward pass; see `Workspace`."""
    if capability_of(rows) is None or not are_usable(rows):
        return Workspace(rows, shape, is_small=is_small)
    from .workspace import KernelWorkspace  # needs triton

    return KernelWorkspace(rows, shape, is_small=is_small, is_forward=is_forward)


def plan_for(rows: Tensor, num_bottleneck: int, num_new: int) -> Plan | None:
    """Return how kernels compute the convolutions of a dense layer with b and k channels; None if they do not."""
    capability = capability_of(rows)
    if capability is None or not are_usable(rows):
        return None
    return plan(capability, rows.dtype, num_bottleneck, num_new)
