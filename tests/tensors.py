"""Measure what tensor operations do and keep, and compare sets of named tensors."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorages(TorchDispatchMode):
    """Watch the memory behind every tensor that an operation returns, without keeping it alive.

    Weak references see all that stays reachable, by whatever way: saved for the backward pass, held by a closure, or
    left in a reference cycle. Hooks on saved tensors would miss what recomputation holds in its closures.
    """

    def __init__(self, counts: Callable[[Tensor], bool] = lambda tensor: True):
        super().__init__()
        self._references: dict[int, weakref.ref[UntypedStorage]] = {}
        self._counts = counts
        self.peak_bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        outputs = operator(*args, **(kwargs or {}))
        for tensor in _tensors(outputs):
            if self._counts(tensor):
                storage = tensor.untyped_storage()
                self._references[id(storage)] = weakref.ref(storage)
                del storage
        self.peak_bytes = max(self.peak_bytes, self.live_bytes())
        return outputs

    def live_bytes(self, *, without: Iterable[Tensor] = ()) -> int:
        left_out = {id(tensor.untyped_storage()) for tensor in without}
        storages = (reference() for key, reference in self._references.items() if key not in left_out)
        return sum(storage.nbytes() for storage in storages if storage is not None)


class OperationCounts(TorchDispatchMode):
    """Count operations by name, convolutions by name and kernel size as in `convolution 3x3`."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name.startswith("convolution"):
            weight = args[2] if name == "convolution_backward" else args[1]
            name += f" {weight.shape[2]}x{weight.shape[3]}"
        self.counts[name] += 1
        return operator(*args, **(kwargs or {}))


def bytes_saved_for_backward(function: Callable[[], Tensor], *, without: Iterable[Tensor]) -> int:
    """Sum the distinct storages that autograd saves while `function` runs."""
    left_out = {id(tensor.untyped_storage()) for tensor in without}
    saved: dict[int, UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for key, storage in saved.items() if key not in left_out)


def unequal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that are not the same bit for bit; NaN equals nothing."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, tuple | list):
        for output in outputs:
            yield from _tensors(output)
