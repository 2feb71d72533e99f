"""Which dense blocks, transitions and final norms may run over a feature buffer, and why others may not.

Over a buffer no module is called: only parameters, buffers and settings are read. So all modules have to be of the
classes and in the order that this project puts them in, with nothing added to what a call of them does.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import DenseLayer, PlainLayer, Transition
from ..tracing import is_plain
from ..unmodified import why_classes_modified, why_modified
from .function import is_autocast, layers_of


class Part(NamedTuple):
    """The class and the settings that a module inside a layer or a transition has to have.

    Attributes:
        type: Its class.
        settings: The values of its attributes.
        kernel_size: Height and width of the filters of a convolution.
    """

    type: type[nn.Module]
    settings: Mapping[str, Any] = {}
    kernel_size: int = 0


def _convolution(kernel_size: int) -> Part:
    """A convolution of stride 1 without bias that keeps height and width."""
    sides = {"kernel_size": (kernel_size, kernel_size), "padding": (kernel_size // 2, kernel_size // 2)}
    others = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "bias": None}
    return Part(nn.Conv2d, sides | others, kernel_size)


NORM, RELU, DROPOUT = Part(nn.BatchNorm2d), Part(nn.ReLU), Part(nn.Dropout, {"inplace": False})
POOLING = Part(
    nn.AvgPool2d,
    {
        "kernel_size": 2,
        "stride": 2,
        "padding": 0,
        "ceil_mode": False,
        "count_include_pad": True,
        "divisor_override": None,
    },
)
# The modules of both kinds of layers and of a transition, by attribute. Those of a transition are called in this order.
PLAIN_LAYER = {"norm1": NORM, "relu1": RELU, "conv1": _convolution(3)}
DENSE_LAYER = {
    "norm1": NORM,
    "relu1": RELU,
    "conv1": _convolution(1),
    "norm2": NORM,
    "relu2": RELU,
    "conv2": _convolution(3),
}
TRANSITION = {"norm": NORM, "relu": RELU, "conv": _convolution(1), "pool": POOLING}
DROPPING_TRANSITION = {"norm": NORM, "relu": RELU, "conv": _convolution(1), "drop": DROPOUT, "pool": POOLING}


def why_call_itself(block: nn.Module) -> str:
    """Say why a block has to be called, its layers left aside; empty if nothing speaks against running its layers."""
    return why_modified("", block) or why_classes_modified([block])


def why_call_layers(block: nn.Module, x: Tensor) -> str:
    """Say why the layers of a block have to be called; empty if they can run over a buffer.

    Args:
        block: A `DenseBlock`.
        x: A tensor of the dtype and on the device of the block's input.
    """
    named = list(block.named_modules(remove_duplicate=False))[1:]
    reason = _why_any_modified(named)
    if reason:
        return reason
    num_features = None
    for name, layer in block.named_children():
        expected = PLAIN_LAYER if isinstance(layer, PlainLayer) else DENSE_LAYER
        modules = dict(layer.named_children())
        if not isinstance(layer, DenseLayer | PlainLayer) or modules.keys() != expected.keys():
            return f"{name} has other parts than this network's own"
        reason = _why_parts_unfit(f"{name}.", modules, expected, x)
        if reason:
            return reason
        if num_features not in (None, layer.num_input_features):
            return f"{name} does not read all that comes before it"
        num_features = layer.num_input_features + layer.growth_rate
    return ""


def why_not_from(block: nn.Module, x: Tensor) -> str:
    """Say why a block cannot start with x (N, C, H, W), for which its modules raise an error; empty if it can."""
    reads_all = layers_of(block)[0].num_input_features == x.shape[1]
    return "" if reads_all else "its first layer does not read all that comes before it"


def why_call_transition(transition: nn.Module, x: Tensor) -> str:
    """Say why a transition or final norm has to be called; empty if it can read the buffer of a block.

    Args:
        transition: The module after a block.
        x: A tensor of the dtype and on the device of its input.
    """
    named = list(transition.named_modules(remove_duplicate=False))
    reason = _why_any_modified(named)
    if reason:
        return reason
    if not isinstance(transition, Transition):
        return _why_unfit("", transition, NORM, x)
    modules = dict(transition.named_children())
    expected = TRANSITION if transition.dropout is None else DROPPING_TRANSITION
    if list(modules) != list(expected):
        return f"{type(transition).__name__} has been rearranged"
    return _why_parts_unfit("", modules, expected, x)


def why_call_stem(modules: Iterable[nn.Module], x: Tensor) -> str:
    """Say why the modules of a stem after its convolution may not be run twice; empty if they may.

    Args:
        modules: Norm, ReLU and pooling.
        x: A tensor of the dtype and on the device of their input.
    """
    modules = list(modules)
    reasons = (_why_unfit("", module, NORM, x) for module in modules if isinstance(module, nn.BatchNorm2d))
    return _why_any_modified([("", module) for module in modules]) or next(filter(None, reasons), "")


def _why_any_modified(named: list[tuple[str, nn.Module]]) -> str:
    if len({id(module) for _, module in named}) < len(named):
        return "a module stands in two places"
    reasons = (why_modified(name, module) for name, module in named)
    return next(filter(None, reasons), "") or why_classes_modified(module for _, module in named)


def _why_parts_unfit(prefix: str, modules: Mapping[str, nn.Module], expected: Mapping[str, Part], x: Tensor) -> str:
    reasons = (_why_unfit(prefix + name, module, expected[name], x) for name, module in modules.items())
    return next(filter(None, reasons), "")


def _why_unfit(name: str, module: nn.Module, expected: Part, x: Tensor) -> str:
    """Say how a module differs from what this network puts in its place; empty if it does not."""
    reason = ""
    if not isinstance(module, expected.type):
        reason = "is of another class than this network's own"
    elif not all(getattr(module, attribute) == value for attribute, value in expected.settings.items()):
        reason = "has other settings than this network's own"
    elif isinstance(module, nn.BatchNorm2d):
        reason = _why_norm_unfit(module, x)
    elif isinstance(module, nn.Conv2d):
        reason = _why_convolution_unfit(module, expected.kernel_size, x)
    if not reason:
        return ""
    return f"{name} ({type(module).__name__}) {reason}" if name else f"{type(module).__name__} {reason}"


def _why_norm_unfit(norm: nn.BatchNorm2d, x: Tensor) -> str:
    weight, bias = norm.weight, norm.bias
    if weight is None or bias is None:
        return "has no weight and bias"
    if weight.dtype.itemsize < 4 or bias.dtype.itemsize < 4:
        return "has parameters of 16 bits"
    tensors = [weight, bias, *(values for values in (norm.running_mean, norm.running_var) if values is not None)]
    if any(tensor.shape != (norm.num_features,) for tensor in tensors):
        return f"has parameters of other shapes than its {norm.num_features} features"
    return _why_tensors_unfit(tensors, x, {torch.float32, x.dtype})


def _why_convolution_unfit(convolution: nn.Conv2d, kernel_size: int, x: Tensor) -> str:
    weight = convolution.weight
    if weight.shape != (convolution.out_channels, convolution.in_channels, kernel_size, kernel_size):
        return "has a weight of another shape than its settings say"
    # Autocast casts all weights. Without it, they have the dtype of the feature maps, or the module raises an error.
    return _why_tensors_unfit([weight], x, {weight.dtype} if is_autocast(x) else {x.dtype})


def _why_tensors_unfit(tensors: list[Tensor], x: Tensor, dtypes: set[torch.dtype]) -> str:
    for tensor in tensors:
        if not is_plain(tensor):
            return f"has a tensor of class {type(tensor).__name__}"
        if tensor.dtype not in dtypes:
            return f"has a tensor of {tensor.dtype} for feature maps of {x.dtype}"
        if tensor.layout != torch.strided:
            return f"has a tensor of layout {tensor.layout}"
    return ""
