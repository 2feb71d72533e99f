"""Which dense blocks, transitions and last norm layers may be read over a feature buffer, and why others may not.

Over a buffer no module is called: only parameters, buffers and settings are read. So all modules have to be of the
classes and in the order that this project puts them in, with nothing added to what a call of them does.
"""

import torch
from torch import Tensor, nn

from ..tracing import is_plain
from ..unmodified import why_classes_modified, why_modified
from .function import has_bottleneck, is_autocast, last_convolution, layers_of

# The class of a module, by its name without digits.
ROLES = {"norm": nn.BatchNorm2d, "relu": nn.ReLU, "conv": nn.Conv2d, "drop": nn.Dropout, "pool": nn.AvgPool2d}
# The parts of both kinds of layers, and those of all that may read a block, in their order.
LAYERS = ({"norm1", "relu1", "conv1"}, {"norm1", "relu1", "conv1", "norm2", "relu2", "conv2"})
READERS = ([], ["norm", "relu", "conv", "pool"], ["norm", "relu", "conv", "drop", "pool"])
POOLING = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "count_include_pad": True}
SETTINGS = {nn.AvgPool2d: POOLING | {"divisor_override": None}, nn.Dropout: {"inplace": False}}
CONVOLUTION = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "bias": None}


def why_call_block(block: nn.Module, maps: Tensor) -> str:
    """Say why the layers of a block have to be called; empty if they can run over a buffer.

    Args:
        block: A `DenseBlock`.
        maps: Of the type and on the device of those that the block starts with.
    """
    reason = why_call(block, maps, without_itself=True)
    if reason:
        return reason
    num_features = None
    for name, layer in block.named_children():
        if {part for part, _ in layer.named_children()} not in LAYERS:
            return f"{name} has other parts than this network's own"
        if layer.norm1.num_features != (num_features or layer.norm1.num_features):
            return f"{name} does not read all that comes before it"
        num_features = layer.norm1.num_features + last_convolution(layer).out_channels
    return ""


def why_not_from(block: nn.Module, maps: Tensor) -> str:
    """Say why a block cannot start with some maps (N, C, H, W), for which its modules raise an error."""
    reads_all = layers_of(block)[0].norm1.num_features == maps.shape[1]
    return "" if reads_all else "its first layer does not read all that comes before it"


def why_call_reader(reader: nn.Module, maps: Tensor) -> str:
    """Say why a transition or the last norm layer has to be called; empty if it can read the buffer of a block."""
    reason = why_call(reader, maps)
    if not reason and [name for name, _ in reader.named_children()] not in READERS:
        reason = f"{type(reader).__name__} has been rearranged"
    return reason


def why_call(root: nn.Module, maps: Tensor, *, without_itself: bool = False) -> str:
    """Say why a module or one within it has to be called; empty if parameters and settings say all that they do.

    Args:
        root: The module.
        maps: Of the type and on the device of those that it gets.
        without_itself: Whether only the modules within it count.
    """
    named = list(root.named_modules(remove_duplicate=False))[1 if without_itself else 0 :]
    modules = dict(named)
    if len({id(module) for module in modules.values()}) < len(named):
        return "a module stands in two places"
    reasons = (why_modified(name, module) or _why_unfit(name, module, modules, maps) for name, module in named)
    return next(filter(None, reasons), "") or why_classes_modified(modules.values())


def _why_unfit(name: str, module: nn.Module, modules: dict[str, nn.Module], maps: Tensor) -> str:
    """Say in which setting a module differs from what this network puts in its place."""
    described = f"{name} ({type(module).__name__})" if name else type(module).__name__
    if not isinstance(module, ROLES.get(name.rpartition(".")[2].rstrip("0123456789"), nn.Module)):
        return f"{described} is of another class than its name says"
    reason = ""
    if isinstance(module, nn.BatchNorm2d):
        reason = _why_norm_unfit(module, maps)
    elif isinstance(module, nn.Conv2d):
        reason = _why_convolution_unfit(module, _kernel_size(name, modules), maps)
    elif not _has(module, SETTINGS.get(type(module), {})):
        reason = "has other settings than this network's own"
    return f"{described} {reason}" if reason else ""


def _why_norm_unfit(norm: nn.BatchNorm2d, maps: Tensor) -> str:
    weight, bias = norm.weight, norm.bias
    if weight is None or bias is None:
        return "has no weight and bias"
    if weight.dtype.itemsize < 4 or bias.dtype.itemsize < 4:
        return "has parameters of 16 bits"
    tensors = [weight, bias, *(values for values in (norm.running_mean, norm.running_var) if values is not None)]
    if any(tensor.shape != (norm.num_features,) for tensor in tensors):
        return f"has parameters of other shapes than its {norm.num_features} features"
    return _why_tensors_unfit(tensors, maps, {torch.float32, maps.dtype})


def _why_convolution_unfit(convolution: nn.Conv2d, size: int, maps: Tensor) -> str:
    settings = {"kernel_size": (size, size), "padding": (size // 2, size // 2)}
    if not _has(convolution, CONVOLUTION | settings):
        return "has other settings than this network's own"
    if convolution.weight.shape != (convolution.out_channels, convolution.in_channels, size, size):
        return "has a weight of another shape than its settings say"
    # Autocast brings all weights to its type. Without it, they are of the type of the maps, or the module complains.
    allowed = {convolution.weight.dtype} if is_autocast(maps) else {maps.dtype}
    return _why_tensors_unfit([convolution.weight], maps, allowed)


def _why_tensors_unfit(tensors: list[Tensor], maps: Tensor, dtypes: set[torch.dtype]) -> str:
    for tensor in tensors:
        if not is_plain(tensor):
            return f"has a tensor of class {type(tensor).__name__}"
        if tensor.dtype not in dtypes:
            return f"has a tensor of {tensor.dtype} for maps of {maps.dtype}"
        if tensor.layout != torch.strided:
            return f"has a tensor of layout {tensor.layout}"
    return ""


def _kernel_size(name: str, modules: dict[str, nn.Module]) -> int:
    """The last convolution of a dense layer is 3x3, all others are 1x1."""
    parent, _, own_name = name.rpartition(".")
    if parent not in modules:
        return 1
    return 3 if own_name == ("conv2" if has_bottleneck(modules[parent]) else "conv1") else 1


def _has(module: nn.Module, settings: dict[str, object]) -> bool:
    return all(getattr(module, name) == value for name, value in settings.items())
