"""The bytes that a training step takes, counted without running it: any size, nothing allocated.

The step runs on fake tensors: they have shapes, types and storages, but no memory. Every operation hands its results to
the count, which follows each storage until nothing refers to it any more. A peak differs from the one that `measure`
sees by no more than small temporaries inside operators.
"""

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from commands.benchmark.step import Case, Step
from commands.benchmark.variants import Variant
from models.buffer.device import Capability, as_on_gpu, capability_of
from models.buffer.rows import two_chunks_for_all

ATEN = torch.ops.aten
# Their fake results depend on the device, or exist in `FakeTensorMode` only. All other operations, unless they name a
# device, take its short cut: their shapes, directly from torch.
NEEDS_DEVICE = frozenset(
    [
        ATEN.convolution.default,
        ATEN.convolution_backward.default,
        ATEN._to_copy.default,
        ATEN.batch_norm_update_stats.default,
    ]
)


class TrainingBytes(NamedTuple):
    """The memory of training in bytes.

    Attributes:
        state: Weights, gradients, momentum and buffers, the same for all batches.
        batch: Images and labels.
        peak: The most bytes that are alive in a step, above state and batch.
    """

    state: int
    batch: int
    peak: int

    @property
    def step(self) -> int:
        """The batch and the peak, which grow with the number of images."""
        return self.batch + self.peak

    @property
    def total(self) -> int:
        """A little more than training needs: at the peak, not all gradients exist."""
        return self.state + self.step


@cache  # the search for one answer passes sizes that another one has counted
def training_bytes(variant: Variant, case: Case, capability: Capability | None = None) -> TrainingBytes:
    """Count the bytes that training takes; see `fake_step`."""
    with fake_step(variant, case, capability) as (step, live), two_chunks_for_all():
        before = live.start_peak()
        step()
    return TrainingBytes(state_bytes(step.network), step.images.nbytes + step.labels.nbytes, live.peak - before)


@contextmanager
def fake_step(variant: Variant, case: Case, capability: Capability | None = None) -> Iterator[tuple[Step, "LiveBytes"]]:
    """Build a step of fake tensors, and count the bytes that are alive while it runs.

    Args:
        variant: The way to train.
        case: The network and the batch.
        capability: Do as on a GPU of this compute capability. The tensors are of the CPU then, because autocast and
            some operations refuse fake tensors of a GPU that is not there. None: as on the device of the case.
    """
    if capability is not None:
        case = replace(case, device=torch.device("cpu"))
    with torch.device("meta"):  # where a network takes no memory
        network = variant.build(case.network).to(**case.layout(variant.memory_format))
    with LiveBytes(case.device) as live, nullcontext() if capability is None else as_on_gpu(capability):
        yield case.step_with(network.to_empty(device=case.device), variant.memory_format), live


def state_bytes(network: nn.Module) -> int:
    """Bytes of weights, gradients, momentum and buffers."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return 3 * weights + sum(buffer.nbytes for buffer in network.buffers())


class LiveBytes(FakeTensorMode):
    """Make all tensors fake, and count the bytes of those that are alive.

    Args:
        device: The device on which all of them pretend to be.

    Attributes:
        live: Bytes that are alive now.
        peak: The most bytes that were alive at one moment.
    """

    def __init__(self, device: torch.device):
        super().__init__(allow_non_fake_inputs=True)  # the network comes from the device "meta"
        self.count_device = device
        self.live = self.peak = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        self._is_inside = False

    def start_peak(self) -> int:
        """Let the peak start again from the bytes that are alive now, and return these."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the shapes of an operation's results, and count the results."""
        kwargs = kwargs or {}
        if self._is_inside:  # an operation that consists of others: these allocate nothing in a real step
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        written = _written_argument(func)
        if written is not None:
            position, name = written
            results = kwargs[name] if name in kwargs else args[position]
        else:
            results = self._results(func, types, args, kwargs)
        for tensor in tensors_in(results):
            self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.live + self._bytes_converted(func, args, results))
        return results

    def _results(self, func: OpOverload, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        needs_device = func in NEEDS_DEVICE or kwargs.get("device") is not None
        if not needs_device and isinstance(next(tensors_in(args[:1]), None), FakeTensor):
            with in_kernel_invocation_manager(self):
                results = func(*args, **kwargs)
            if isinstance(results, tuple | list):
                results = type(results)(map(self._faked, results))
            else:
                results = self._faked(results)
        else:
            self._is_inside = True
            try:
                results = super().__torch_dispatch__(func, types, args, kwargs)
            finally:
                self._is_inside = False
        if func is ATEN.native_batch_norm_backward.default:  # fake gradients exist even where nobody asked for them
            results = tuple(result if wanted else None for result, wanted in zip(results, args[-1], strict=True))
        return results

    def _faked(self, result: Any) -> Any:
        """A tensor of the device "meta" as one that pretends to be on the device of the count."""
        is_meta = isinstance(result, Tensor) and not isinstance(result, FakeTensor)
        return FakeTensor(self, result, self.count_device) if is_meta else result

    def _note(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda reference: self._forget(key, size))
            self.live += size

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self.live -= size

    def _bytes_converted(self, func: OpOverload, args: Any, results: Any) -> int:
        """Bytes of the copies in which a CPU computes elementwise on tensors of several types. A GPU makes none."""
        if self.count_device.type != "cpu" or torch.Tag.pointwise not in func.tags:
            return 0
        operands = list(tensors_in(args))
        if len({operand.dtype for operand in operands}) < 2 or capability_of(operands[0]) is not None:
            return 0
        common = functools.reduce(torch.promote_types, (operand.dtype for operand in operands))
        converted = (tensor for tensor in [*operands, *tensors_in(results)] if tensor.dtype not in (common, torch.bool))
        return sum(tensor.numel() * common.itemsize for tensor in converted)


@cache
def _written_argument(func: OpOverload) -> tuple[int, str] | None:
    """Position and name of the argument that an operation writes and returns: in place, or `out`."""
    schema = func._schema
    if len(schema.returns) != 1 or schema.returns[0].alias_info is None or not schema.returns[0].alias_info.is_write:
        return None
    *_, written = ((i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write)
    return written


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in a value, or in a tuple or list of values."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_in(value)
