"""The traffic of a training step on a GPU, counted without running it: bytes, launches and products of every call.

The step runs on fake tensors, as in `count`, and every call of ATen and every launch of our kernels is noted with the
bytes of each of its operands. A GPU moves them at each call: what one call leaves in the caches is mostly gone before
the next one reads it. `simulate` estimates what is not.

The step is that of training, whose gradients are new and not added to old ones. Dropout of a network is counted as on a
CPU, as three calls that draw, scale and multiply; a GPU has a single one for them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from commands.benchmark.count import fake_step, tensors_in
from commands.benchmark.step import Case
from commands.benchmark.variants import Variant
from models.buffer.device import Capability, capability_of
from models.buffer.kernels.launch import Launch, Product, recorded

OTHERWISE = (9, 0)  # the compute capability of a GPU that is not there
SECTOR = 32  # bytes that a GPU's memory moves at a time
SHORT_RUN = 512  # bytes; where values that lie side by side are as many, sectors at their ends do not matter

VIEWS = frozenset(["as_strided_", "_unsafe_view"])  # of their arguments, though their schemas do not say so
ALLOCATIONS = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
# They write what they are given without reading it, or read its shape only.
OVERWRITING = frozenset(["copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_"])
FILLING = frozenset(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"])
ONLY_SHAPE = frozenset(["avg_pool2d_backward", "max_pool2d_with_indices_backward", "nll_loss_backward"])  # of "self"
# Kinds of calls that differ in what they cost; all others are "elementwise", or "broadcast" where sizes differ.
KINDS = {
    "convolution": "convolution",
    "convolution_backward": "convolution backward",
    "mm": "product",
    "addmm": "product",
    "native_batch_norm": "norm",
    "native_batch_norm_backward": "norm",
    "batch_norm_update_stats": "norm",
    "cat": "cat",
    "avg_pool2d": "pooling",
    "avg_pool2d_backward": "pooling",
    "max_pool2d_with_indices": "pooling",
    "max_pool2d_with_indices_backward": "pooling",
}


class Operand(NamedTuple):
    """Memory that a kernel reads or writes.

    Attributes:
        storage: Number of the storage, in the order in which a trace meets them.
        offset: Its beginning in the storage, in values.
        nbytes: Bytes that are moved.
    """

    storage: int
    offset: int
    nbytes: int


class Kernel(NamedTuple):
    """A pass of a GPU over some memory.

    Attributes:
        reads: Operands that it reads, each once.
        writes: Operands that it writes.
        repeated: Bytes that programs running at the same time read again, from the cache.
        product: The matrix product that it computes, if any.
        itemsize: Bytes of a value of its largest operand.
    """

    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    repeated: int = 0
    product: Product | None = None
    itemsize: int = 4

    @property
    def nbytes(self) -> int:
        """Bytes that it moves between its processors and memory or caches, without repeated ones."""
        return sum(operand.nbytes for operand in (*self.reads, *self.writes))


class Call(NamedTuple):
    """A call of ATen, or a launch of one of our kernels.

    Attributes:
        name: Of the operation or of the kernel.
        kind: Decides how much it costs besides bytes and products: "view", "allocation", "elementwise", "broadcast",
            "foreach", "triton", or a value of KINDS.
        caller: Who pays for the call on the host: "autograd" if it records a graph, "engine" for the backward pass of
            an operation of PyTorch, "python" for an autograd function written in Python.
        kernels: Passes that it launches; several for norms and the gradients of convolutions.
    """

    name: str
    kind: str
    caller: str
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Trace:
    """All calls of a step, in order."""

    calls: tuple[Call, ...]

    @cached_property
    def kernels(self) -> list[tuple[str, Kernel]]:
        """All kernels, each with the kind of its call."""
        return [(call.kind, kernel) for call in self.calls for kernel in call.kernels]

    @property
    def bytes_moved(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.nbytes for _, kernel in self.kernels)

    @property
    def num_launches(self) -> int:
        """Calls that give the device something to do. A call of ATen is one, however many kernels it launches."""
        return sum(bool(call.kernels) for call in self.calls)


def gpu_of(device: torch.device) -> Capability:
    """Return the compute capability for which the traffic of steps on a device is counted: its own, if it has one."""
    return capability_of(torch.empty(0, device=device)) or OTHERWISE


def trace_step(variant: Variant, case: Case, capability: Capability) -> Trace:
    """Trace forward, loss and backward of a training step as on a GPU, on any machine.

    Args:
        variant: The way to train; it must not be compiled.
        case: The network and the batch; its device does not matter.
        capability: Compute capability of the GPU, which decides between kernels.
    """
    with fake_step(variant, case, capability) as (step, _):
        step.network.zero_grad()
        with _Tracer() as tracer, recorded(tracer.note_launch):
            step.forward().backward()
    return Trace(tuple(tracer.calls))


class _Tracer(TorchDispatchMode):
    """Notes all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._numbers: dict[int, int] = {}
        self._storages: list[torch.UntypedStorage] = []  # kept, so that no two have the same id

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, and note it if it has to do with tensors."""
        results = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or next(tensors_in(results), None) is not None:
            names = [argument.name for argument in func._schema.arguments]
            bound = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.calls.append(self._call(func, bound, results))
        return results

    def note_launch(self, launch: Launch) -> None:
        """Note the launch of one of our kernels."""
        repeated = sum(bytes_moved(tensor) * times for tensor, times in launch.repeats)
        kernel = self._kernel(launch.reads, launch.writes, launch.product)._replace(repeated=repeated)
        self.calls.append(Call(launch.name, "triton", _caller(), (kernel,)))

    def _call(self, func: OpOverload, bound: dict[str, Any], results: Any) -> Call:
        name, caller = func.overloadpacket.__name__, _caller()
        if func.is_view or name in VIEWS:
            return Call(name, "view", caller)
        if name in ALLOCATIONS:
            return Call(name, "allocation", caller)
        kernels = tuple(self._kernels(func, bound, results))
        kind = "foreach" if name.startswith("_foreach") else KINDS.get(name, "elementwise")
        sizes = {operand.nbytes for kernel in kernels for operand in kernel.reads}
        if kind == "elementwise" and torch.Tag.pointwise in func.tags and len(sizes) > 1:
            kind = "broadcast"
        return Call(name, kind, caller, kernels)

    def _kernels(self, func: OpOverload, bound: dict[str, Any], results: Any) -> Iterator[Kernel]:
        """The passes of a call over memory, as cuDNN, cuBLAS and ATen make them on a GPU."""
        match func.overloadpacket.__name__:
            case "convolution":
                x, weight, y = bound["input"], bound["weight"], results
                product = Product(y.numel() // y.shape[1], y.shape[1], weight[0].numel())
                yield self._kernel([x, weight, bound["bias"]], [y], product)
            case "convolution_backward":
                yield from self._convolution_backward(bound, results)
            case "mm" | "addmm" as name:
                left, right = (bound["self"], bound["mat2"]) if name == "mm" else (bound["mat1"], bound["mat2"])
                product = Product(left.shape[0], right.shape[1], left.shape[1])
                yield self._kernel(bound.values(), [results], product)
            case "native_batch_norm":
                y, mean, invstd = results
                running = [bound["running_mean"], bound["running_var"]]
                if bound["training"]:
                    yield self._kernel([bound["input"], *running], [mean, invstd, *running])
                yield self._kernel([bound["input"], mean, invstd, bound["weight"], bound["bias"]], [y])
            case "native_batch_norm_backward":
                grad_x, *grad_vectors = results
                inputs = [bound[name] for name in ("grad_out", "input", "save_mean", "save_invstd")]
                yield self._kernel(inputs, grad_vectors)
                if grad_x is not None:
                    yield self._kernel([*inputs, bound["weight"], *grad_vectors], [grad_x])
            case "batch_norm_update_stats":
                running = [bound["running_mean"], bound["running_var"]]
                yield self._kernel([bound["input"], *running], [*results, *running])
            case _:
                yield self._kernel(*_reads_and_writes(func, bound, results))

    def _convolution_backward(self, bound: dict[str, Any], results: Any) -> Iterator[Kernel]:
        grad, x, weight = bound["grad_output"], bound["input"], bound["weight"]
        grad_x, grad_weight, _ = results
        num_pixels, num_outputs, num_taps = grad.numel() // grad.shape[1], grad.shape[1], weight[0, 0].numel()
        if bound["output_mask"][0]:
            product = Product(num_pixels, weight.shape[1], num_outputs * num_taps)
            yield self._kernel([grad, weight], [grad_x], product)
        if bound["output_mask"][1]:
            yield self._kernel([grad, x], [grad_weight], Product(weight[0].numel(), num_outputs, num_pixels))

    def _kernel(self, reads: Any, writes: Any, product: Product | None = None) -> Kernel:
        read, written = list(tensors_in(tuple(reads))), list(tensors_in(tuple(writes)))
        largest = max([*read, *written], key=Tensor.numel)
        return Kernel(self._operands(read), self._operands(written), product=product, itemsize=largest.element_size())

    def _operands(self, tensors: Sequence[Tensor]) -> tuple[Operand, ...]:
        """Describe tensors; one that is given twice is moved once."""
        found = (Operand(self._number(one), int(one.storage_offset()), bytes_moved(one)) for one in tensors)
        return tuple(dict.fromkeys(found))

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if id(storage) not in self._numbers:
            self._numbers[id(storage)] = len(self._storages)
            self._storages.append(storage)
        return self._numbers[id(storage)]


def _caller() -> str:
    if torch.is_grad_enabled():  # in the backward pass too, where a checkpoint runs modules again
        return "autograd"
    node = torch._C._current_autograd_node()
    return "python" if node is None or isinstance(node, torch.autograd.function.BackwardCFunction) else "engine"


def _reads_and_writes(func: OpOverload, bound: dict[str, Any], results: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Sort the tensors of a call by its schema: what it reads, and what it writes."""
    name = func.overloadpacket.__name__
    reads: list[Tensor] = []
    writes: list[Tensor] = []
    for argument in func._schema.arguments:
        tensors = list(tensors_in(bound.get(argument.name)))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written:
            writes += tensors
        is_overwritten = is_written and (argument.is_out or name in OVERWRITING)
        is_shape = name in FILLING or (name in ONLY_SHAPE and argument.name == "self")
        if not (is_overwritten or is_shape):
            reads += tensors
    return reads, writes or list(tensors_in(results))


def bytes_moved(tensor: Tensor) -> int:
    """Count the bytes that reading or writing a tensor once moves.

    A dimension of stride 0 repeats values that are moved once. Rows that are shorter than the distance between them are
    moved in whole sectors.
    """
    itemsize = tensor.element_size()
    dims = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    merged: list[tuple[int, int]] = []  # strides and sizes, ascending; dimensions that are dense in another are joined
    for stride, size in dims:
        if size == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    if tensor.numel() == 0:
        return 0
    own = itemsize * math.prod(size for _, size in merged)
    run = merged.pop(0)[1] * itemsize if merged and merged[0][0] == 1 else itemsize
    if not merged or run >= SHORT_RUN:
        return own
    (stride, num_rows), outer = merged[0], math.prod(size for _, size in merged[1:])
    start, pitch = int(tensor.storage_offset()) * itemsize, stride * itemsize
    whole = SECTOR * outer * _sectors(start, pitch, run, num_rows)
    extent = itemsize + sum((size - 1) * stride * itemsize for stride, size in dims)
    return max(own, min(whole, extent))


def _sectors(start: int, pitch: int, run: int, num_rows: int) -> int:
    """Count the sectors that rows touch. They repeat after a few rows, when beginnings of rows and sectors meet."""
    period = SECTOR // math.gcd(pitch, SECTOR)

    def touched(rows: range) -> int:
        return sum((start + i * pitch + run - 1) // SECTOR - (start + i * pitch) // SECTOR + 1 for i in rows)

    full, rest = divmod(num_rows, period)
    return full * touched(range(period)) + touched(range(rest))
