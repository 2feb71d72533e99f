"""Whatever is done to modules, every strategy gives the gradients of plain modules, with a warning where it calls them.

The plain network is built of the modules that were modified in the same way. That the modification matters is checked
against the network without it.
"""

import functools
import types
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from torch.overrides import TorchFunctionMode

from models import DenseNet
from models.features import DenseBlock, Features
from models.layers import DenseLayer, Transition
from tests.support.network_pairs import LAYER, ROUNDING, SMALL, doubles
from tests.support.tensor_measurements import largest_difference, naive_and, record

EFFICIENT = ("checkpoint", "buffer", "buffer_fast")
BUFFERS = EFFICIENT[1:]

# Everything takes the network and pytest's monkeypatch, which takes back what is done to classes and functions.
Change = Callable[[DenseNet, pytest.MonkeyPatch], None]


def of_module(path: str, modify: Callable[[nn.Module], object]) -> Change:
    return lambda network, _: modify(network.get_submodule(path))


def of_class(owner: object, name: str, make: Callable[[Callable], Callable]) -> Change:
    """Replace a method of a class, or a function of a module, by what is made of it."""
    return lambda _, patch: patch.setattr(owner, name, make(getattr(owner, name)))


def doubled(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> Tensor:
        return 2 * function(*args, **kwargs)

    return call


def squared(function: Callable) -> Callable:
    return lambda *args, **kwargs: function(*args, **kwargs).square()


def wrap_around(convolution: nn.Conv2d) -> None:
    def convolve(self: nn.Conv2d, images: Tensor, weight: Tensor, bias: None) -> Tensor:
        return F.conv2d(F.pad(images, (1,) * 4, mode="circular"), weight)

    convolution._conv_forward = types.MethodType(convolve, convolution)


def set_forward(make: Callable[[Callable], Callable]) -> Callable[[nn.Module], None]:
    def modify(module: nn.Module) -> None:
        module.forward = make(module.forward)

    return modify


class Softer(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.softplus(maps)


class LeakyNorm(nn.BatchNorm2d):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) + 0.1 * maps


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Tripling(nn.Parameter):
    """A parameter whose convolutions are three times as large."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(Tensor) * 3 if function is F.conv2d else result


def change_class(cls: type[nn.Module]) -> Callable[[nn.Module], None]:
    def modify(module: nn.Module) -> None:
        module.__class__ = cls

    return modify


def tie_weight(convolution: nn.Conv2d) -> None:
    """Put a tensor that is computed from another one in the place of the parameter."""
    weight = convolution.weight
    del convolution.weight
    convolution.register_parameter("original", weight)
    convolution.register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.original * 2))


def drop_running_statistics(norm: nn.BatchNorm2d) -> None:
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def same_layer_twice(network: DenseNet, _: object) -> None:
    block = network.features.denseblock1
    block.denselayer3.norm2 = block.denselayer2.norm2
    block.denselayer3.conv2 = block.denselayer2.conv2


def weight_of_the_class(network: DenseNet, patch: pytest.MonkeyPatch) -> None:
    """Let all convolutions compute with a weight that their class makes of the parameter."""
    patch.setattr(nn.Conv2d, "weight", property(lambda module: module._parameters["weight"] * 2), raising=False)


def hook_all_modules(network: DenseNet, patch: pytest.MonkeyPatch) -> None:
    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        return output * 1.5 if isinstance(module, nn.BatchNorm2d) else None

    handle = torch_module.register_module_forward_hook(scale)
    patch.setattr(network, "handle", handle, raising=False)


NORM, CONVOLUTION = f"{LAYER}.norm2", f"{LAYER}.conv2"
TRANSITION, BLOCK = "features.transition1", "features.denseblock1"

# Each lets a call do something that parameters and settings do not tell.
SEEN: dict[str, Change] = {
    "a method of a convolution": of_module(CONVOLUTION, wrap_around),
    "forward of a norm": of_module(NORM, set_forward(doubled)),
    "forward of a layer": of_module(LAYER, set_forward(squared)),
    "forward of a transition": of_module(TRANSITION, set_forward(squared)),
    "forward of a block": of_module(BLOCK, set_forward(doubled)),
    "forward of all norms": of_class(nn.BatchNorm2d, "forward", squared),
    "forward of the class that norms inherit": of_class(nn.modules.batchnorm._BatchNorm, "forward", squared),
    "forward of all convolutions": of_class(nn.Conv2d, "forward", doubled),
    "the inner method of all convolutions": of_class(nn.Conv2d, "_conv_forward", doubled),
    "forward of all activations": of_class(nn.ReLU, "forward", squared),
    "forward of all layers": of_class(DenseLayer, "forward", squared),
    "forward of all blocks": of_class(DenseBlock, "forward", doubled),
    "forward of all transitions": of_class(Transition, "forward", squared),
    "the call of all modules": of_class(nn.Conv2d, "__call__", doubled),
    "how modules find their parts": of_class(
        nn.BatchNorm2d,
        "__getattr__",
        lambda find: lambda module, name: 2 * find(module, name) if name == "weight" else find(module, name),
    ),
    "weights of a class": weight_of_the_class,
    "batch norm of torch": of_class(F, "batch_norm", squared),
    "convolutions of torch": of_class(F, "conv2d", doubled),
    "ReLU of torch": of_class(F, "relu", squared),
    "forward hook": of_module(CONVOLUTION, lambda module: module.register_forward_hook(lambda m, i, out: out * 2)),
    "forward pre hook": of_module(NORM, lambda module: module.register_forward_pre_hook(lambda m, i: (i[0] ** 2,))),
    "full backward hook": of_module(
        CONVOLUTION, lambda module: module.register_full_backward_hook(lambda m, given, taken: (given[0] * 2,))
    ),
    "full backward pre hook": of_module(
        NORM, lambda module: module.register_full_backward_pre_hook(lambda m, taken: (taken[0] * 2,))
    ),
    "hooks for all modules": hook_all_modules,
    "weight norm": of_module(CONVOLUTION, lambda module: parametrizations.weight_norm(module)),
    "another parametrisation": of_module(
        CONVOLUTION, lambda module: parametrize.register_parametrization(module, "weight", Halved())
    ),
    "spectral norm by a hook": of_module(CONVOLUTION, lambda module: spectral_norm(module)),
    "pruning": of_module(CONVOLUTION, lambda module: prune.l1_unstructured(module, "weight", amount=0.5)),
    "a subclass": of_module(f"{LAYER}.relu2", change_class(Softer)),
    "another class of a norm": of_module(NORM, change_class(LeakyNorm)),
    "a weight that is computed": of_module(CONVOLUTION, tie_weight),
    "parts in two layers": same_layer_twice,
    "a parameter of a subclass": of_module(
        CONVOLUTION, lambda module: setattr(module, "weight", Tripling(module.weight.detach()))
    ),
}


@pytest.fixture(autouse=True)
def without_global_hooks():
    yield
    torch_module._global_forward_hooks.clear()


def step(strategy: str, change: Change | None, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Gradients and state after a step of a network that was changed after it was built."""
    network = naive_and(strategy, **SMALL)[1].double()
    if change:
        change(network, patch)
    torch.manual_seed(0)
    logits = network(doubles())
    F.cross_entropy(logits, torch.arange(4)).backward()
    return record(network, logits=logits)


@pytest.mark.parametrize("way", SEEN)
def test_a_modified_module_is_called_by_every_strategy(way, monkeypatch):
    unmodified = step("naive", None, monkeypatch)
    # A fresh patch for each network, so that what is done to classes is not done twice.
    results = {}
    for strategy in ("naive", *EFFICIENT):
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            results[strategy] = step(strategy, SEEN[way], patch)
        torch_module._global_forward_hooks.clear()
        messages = [str(warning.message) for warning in seen]
        assert any("keeps more memory" in message for message in messages) == (strategy in BUFFERS), messages
    expected = results["naive"]
    assert expected.keys() != unmodified.keys() or largest_difference(expected, unmodified) > 1e-3, "it changes nothing"
    for strategy in EFFICIENT:
        assert largest_difference(results[strategy], expected) <= ROUNDING, strategy


HARMLESS: dict[str, Change] = {
    "another momentum": of_module(NORM, lambda module: setattr(module, "momentum", 0.3)),
    "another eps": of_module(NORM, lambda module: setattr(module, "eps", 1e-2)),
    "another running mean": of_module(NORM, lambda module: setattr(module, "running_mean", torch.ones(16).double())),
    "no running statistics": of_module(NORM, drop_running_statistics),
    "a frozen norm": of_module(NORM, lambda module: module.eval()),
    "a frozen weight": of_module(CONVOLUTION, lambda module: module.requires_grad_(False)),
    "a hook of a parameter": of_module(CONVOLUTION, lambda module: module.weight.register_hook(lambda grad: grad * 2)),
    "a hook of the state": of_module(CONVOLUTION, lambda module: module.register_state_dict_post_hook(lambda *_: None)),
    "a description of its own": of_module(CONVOLUTION, lambda module: setattr(module, "extra_repr", lambda: "mine")),
    "an attribute more": of_module(CONVOLUTION, lambda module: setattr(module, "note", "mine")),
    "a method more for all modules": lambda _, patch: patch.setattr(nn.Module, "summary", len, raising=False),
    "another way to save": of_class(nn.Module, "state_dict", lambda save: lambda *args, **kw: save(*args, **kw)),
    "another way to build": of_class(nn.Module, "__init__", lambda build: lambda *args, **kw: build(*args, **kw)),
    "a hook of the network": lambda network, _: network.register_forward_hook(lambda *_: None),
    "a hook of the classifier": of_module("classifier", lambda module: module.register_forward_hook(lambda *_: None)),
    "weights twice as large": of_module(CONVOLUTION, lambda module: module.weight.data.mul_(2)),
    "a copy of a class's namespace": of_class(DenseLayer, "__doc__", lambda text: "mine"),
}


@pytest.mark.parametrize("way", HARMLESS)
def test_what_no_call_looks_at_needs_no_plain_modules(way, monkeypatch, blocks_over_buffers):
    results = {}
    for strategy in ("naive", *EFFICIENT):
        with monkeypatch.context() as patch:
            results[strategy] = step(strategy, HARMLESS[way], patch)
    for strategy in EFFICIENT:
        assert largest_difference(results[strategy], results["naive"]) <= ROUNDING, strategy
    assert len(blocks_over_buffers) == 2 * len(BUFFERS)


class Tripled(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 3 if function is F.conv2d or function is torch.conv2d else result


@pytest.mark.parametrize("strategy", EFFICIENT)
def test_a_mode_that_replaces_functions_sees_all_of_them(strategy, monkeypatch):
    with Tripled():
        expected = step("naive", None, monkeypatch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if strategy in BUFFERS else "error")
            actual = step(strategy, None, monkeypatch)
    assert largest_difference(actual, expected) <= ROUNDING


def test_a_default_device_is_no_reason_to_call_modules(blocks_over_buffers, monkeypatch):
    with torch.device("cpu"):
        step("buffer", None, monkeypatch)
    assert len(blocks_over_buffers) == 2


@pytest.mark.parametrize("strategy", EFFICIENT)
def test_weights_of_another_type_are_refused_as_by_the_modules(strategy, monkeypatch):
    def error_of(name: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                step(name, of_module(CONVOLUTION, lambda module: module.float()), monkeypatch)
            except RuntimeError as error:
                return str(error)
        return "none"

    assert error_of(strategy) == error_of("naive") != "none"


def test_a_method_that_was_replaced_before_the_class_was_known_is_seen(monkeypatch):
    from models import unmodified

    monkeypatch.setattr(nn.Conv2d, "forward", squared(nn.Conv2d.forward))
    monkeypatch.setattr(unmodified, "_registered", {})
    unmodified.register(nn.Conv2d)
    assert unmodified.why_classes_modified([nn.Conv2d(1, 1, 1)]) == "Conv2d.forward has been replaced"


def test_features_with_a_forward_of_their_own_are_called(monkeypatch):
    change = of_module("features", set_forward(squared))
    expected = step("naive", change, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual = step("buffer", change, monkeypatch)
    assert isinstance(DenseNet().features, Features)
    assert largest_difference(actual, expected) <= ROUNDING
