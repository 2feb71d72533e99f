"""Measure the operations and the memory of a function, train networks, and compare sets of named tensors."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier

import torch
import torch.nn.functional as F
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import DenseNet


class LiveStorages(TorchDispatchMode):
    """Watch the memory of every tensor that an operation returns, without keeping it alive.

    Weak references see everything that stays reachable in any way: saved for the backward pass, held by a closure, or
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


def second_differences(values: list[int]) -> list[int]:
    return [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]


def unequal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that are not the same bit for bit; NaN equals nothing."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Compare named tensors; differences are relative to the largest magnitude in the tensor that is expected.

    A gradient that is zero in exact arithmetic is rounding noise in both. So a gradient smaller than a thousandth of
    the largest in the network is compared relative to that thousandth. NaN anywhere is the result if it is anywhere.
    """
    assert actual.keys() == expected.keys()
    largest_gradient = max((t.abs().max() for n, t in expected.items() if n.startswith("gradient of ")), default=0)
    differences = [torch.zeros((), dtype=torch.float64)]
    for name, tensor in expected.items():
        least = 1e-3 * largest_gradient if name.startswith("gradient of ") else 0
        difference = (actual[name].double() - tensor.double()).abs().max()
        scale = max(tensor.double().abs().max(), least)
        differences.append(difference / scale if difference != 0 else difference)
    return torch.stack([torch.as_tensor(difference) for difference in differences]).max().item()


def naive_and(strategy: str, **config) -> tuple[DenseNet, DenseNet]:
    """Build two networks with the same weights; norm parameters and statistics are random, so that they matter."""
    torch.manual_seed(0)
    naive = DenseNet(**config)
    with torch.no_grad():
        for norm in norms(naive):
            norm.weight.uniform_(-1.5, 1.5)
            norm.bias.normal_(std=0.5)
            norm.running_mean.normal_(std=0.5)
            norm.running_var.uniform_(0.5, 1.5)
    efficient = DenseNet(**config, efficient=strategy)
    efficient.load_state_dict(naive.state_dict())
    return naive, efficient


def norms(network: nn.Module) -> Iterable[nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def frozen(network: nn.Module) -> nn.Module:
    """Let norm layers use their running statistics, whatever mode the network is in."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return network


def random_images(side: int = 8, images: int = 4) -> Tensor:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(2))


def record(network: nn.Module, **tensors: Tensor) -> dict[str, Tensor]:
    """Copy everything that a training step may change, with the state of the random numbers."""
    gradients = {f"gradient of {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    state = {"random numbers": torch.get_rng_state(), **network.state_dict(), **gradients, **tensors}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def train(
    network: nn.Module,
    images: Tensor,
    *,
    steps: int = 3,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    input_gradient: bool = True,
) -> list[dict[str, Tensor]]:
    """Train by SGD on the same images; return a record of each step."""
    labels = torch.arange(len(images), device=images.device) % 5
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    records = []
    for step in range(steps):
        inputs = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(input_gradient)
        optimizer.zero_grad()
        torch.manual_seed(step)
        with precision():
            logits = network(inputs)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        input_gradients = {"gradient of images": inputs.grad} if input_gradient else {}
        records.append(record(network, logits=logits, loss=loss, **input_gradients))
        optimizer.step()
    return records


def replicate(module: nn.Module, share_buffers: bool) -> nn.Module:
    """Make a replica as data parallel training does: non-leaf parameters, buffers of its own but on the first."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        replica._modules[name] = replicate(child, share_buffers)
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.view_as(parameter))
    for name, buffer in module.named_buffers(recurse=False):
        replica._buffers[name] = buffer if share_buffers else buffer.clone()
    return replica


def train_on_replicas_in_threads(network: DenseNet, images: Tensor | None = None) -> dict[str, Tensor]:
    """Train two replicas, with half of the images each."""
    images = random_images(images=8) if images is None else images
    replicas = [replicate(network, share_buffers) for share_buffers in (True, False)]
    barrier = Barrier(len(replicas))

    def forward(replica: nn.Module, images: Tensor) -> Tensor:
        barrier.wait(timeout=10)
        return replica(images).square().sum()

    with ThreadPoolExecutor(len(replicas)) as pool:
        losses = list(pool.map(forward, replicas, images.chunk(2)))
    sum(losses).backward()
    return record(network, losses=torch.stack(losses))


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, tuple | list):
        for output in outputs:
            yield from _tensors(output)


def assert_undisturbed_by_threads(networks: list[nn.Module], images: Tensor) -> None:
    """Equal networks end in the same state, whether one is trained alone or the others in threads at the same time."""

    def last_state(network: nn.Module) -> dict[str, Tensor]:
        state = train(network, images)[-1]
        del state["random numbers"]  # These are common to all threads.
        return state

    alone = last_state(networks[0])
    with ThreadPoolExecutor(len(networks) - 1) as pool:
        for state in pool.map(last_state, networks[1:]):
            assert unequal(alone, state) == []
