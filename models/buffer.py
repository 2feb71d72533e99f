"""The feature buffer's strategies: which parts of a network run as one function over a buffer, and which are called."""

import warnings
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .plan import bottlenecks_for_free
from .recompute import recompute_in_backward
from .sizes import sizes_of
from .stage import has_bottleneck, last_convolution, layers_of, read_block

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What a module is, by its name without digits, in the order of a transition.
ROLES = {"norm": nn.BatchNorm2d, "relu": nn.ReLU, "conv": nn.Conv2d, "drop": nn.Dropout, "pool": nn.AvgPool2d}
# What the parts of both kinds of layers are called, and those of all that may read a block, in their order.
LAYERS = ({"norm1", "relu1", "conv1"}, {"norm1", "relu1", "conv1", "norm2", "relu2", "conv2"})
READERS = ([], ["norm", "relu", "conv", "pool"], ["norm", "relu", "conv", "drop", "pool"])
PLAIN_POOLING = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "count_include_pad": True}
PLAIN_SETTINGS = {nn.AvgPool2d: PLAIN_POOLING | {"divisor_override": None}, nn.Dropout: {"inplace": False}}
PLAIN_CONVOLUTION = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "bias": None}


def average(maps: Tensor) -> Tensor:
    """ReLU, then the average over all pixels: (N, C, H, W) to (N, C). The input may be overwritten."""
    return F.adaptive_avg_pool2d(F.relu(maps, inplace=True), 1).flatten(1)


def are_modules_wanted() -> bool:
    """Whether plain modules have to be called: nothing is kept without gradients, and compilers follow modules."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


def averages_over_buffers(
    features: nn.Sequential, images: Tensor, *, known: Collection[type[nn.Module]], keeps_bottlenecks: bool
) -> Tensor:
    """Compute `average(features(images))` with each dense block and what reads it over one feature buffer.

    Modules of a stage are not called: only their parameters, buffers and settings are read. Where that would lose
    something (hooks, other classes, parametrisations), the modules are called instead, and a warning says why.

    Args:
        features: A stem, then dense blocks with a transition after each but the last, which a norm layer follows.
        images: (N, 3, H, W).
        known: The classes whose computation is known.
        keeps_bottlenecks: Keep what all 1x1 convolutions make for the backward pass, and not only as much of it as does
            not raise the peak of memory.

    Returns:
        (N, C).
    """
    stem, blocks, readers = _parts_of(features)
    rearranged = "" if blocks else "its features have been rearranged"
    reason = _why_to_call_all() or _why_to_call_itself("features", features, known) or rearranged
    if reason:
        _warn(reason)
        return average(features(images))
    maps = _run_stem(stem, images, known)
    stages = list(zip(blocks, readers, strict=True))
    reasons = [_why_to_call_stage(block, reader, known) for block, reader in stages]
    if keeps_bottlenecks:
        counts = tuple(len(layers_of(block)) for block in blocks)
    else:
        counts = bottlenecks_for_free(tuple(sizes_of(maps, stages, reasons)))
    for (block, reader), reason, count in zip(stages, reasons, counts, strict=True):
        if _may_use_buffer(maps, block, reason):
            maps = read_block(maps, block, reader, num_bottlenecks=count)
        else:
            maps = reader(block(maps))
    return maps if maps.dim() == 2 else average(maps)


def why_to_call(root: nn.Module, known: Collection[type[nn.Module]]) -> str:
    """Say why a module and all in it have to be called; empty if their parameters and settings say all that they do.

    Subclasses may do anything, and so do parametrised, quantised, sharded and synchronised layers, all of which have
    classes of their own. Pruning and the older form of weight norm are hooks.
    """
    modules = dict(root.named_modules())
    reasons = (_why_to_call_itself(name, modules[name], known, _kernel_size(name, modules)) for name in modules)
    return _why_to_call_all() or next(filter(None, reasons), "")


def _why_to_call_all() -> str:
    has_hooks = any(getattr(torch_module, f"_global{hooks}") for hooks in HOOKS)
    return "there are hooks for all modules" if has_hooks else ""


def _kernel_size(name: str, modules: dict[str, nn.Module]) -> int:
    """The last convolution of a dense layer is 3x3, all others are 1x1."""
    parent, _, own_name = name.rpartition(".")
    return 3 if own_name == ("conv2" if has_bottleneck(modules[parent]) else "conv1") else 1


def _why_to_call_itself(name: str, module: nn.Module, known: Collection[type[nn.Module]], kernel_size: int = 1) -> str:
    what = f"{name} ({type(module).__name__})" if name else type(module).__name__
    if type(module) not in known:
        return f"{what} is of a class that it does not know"
    if not isinstance(module, ROLES.get(name.rpartition(".")[2].rstrip("0123456789"), nn.Module)):
        return f"{what} is of another class than its name says"
    if "forward" in vars(module):
        return f"{what} has a forward method of its own"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return f"{what} has hooks"
    if isinstance(module, nn.BatchNorm2d) and (module.weight is None or module.bias is None):
        return f"{what} has no weight and bias"
    if isinstance(module, nn.BatchNorm2d) and module.weight.dtype.itemsize < 4:
        return f"{what} has parameters of 16 bits"
    if isinstance(module, nn.Conv2d) and not _is_plain(module, size=kernel_size):
        return f"{what} has other settings than this network's own"
    if not _has(module, PLAIN_SETTINGS.get(type(module), {})):
        return f"{what} has other settings than this network's own"
    return ""


def _is_plain(convolution: nn.Conv2d, *, size: int) -> bool:
    return _has(convolution, PLAIN_CONVOLUTION | {"kernel_size": (size, size), "padding": (size // 2, size // 2)})


def _has(module: nn.Module, settings: dict[str, object]) -> bool:
    return all(getattr(module, name) == value for name, value in settings.items())


def _parts_of(features: nn.Sequential) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Stem, blocks and what reads each of them; no blocks if the order of modules is not this network's."""
    names = [name.rstrip("0123456789") for name, _ in features.named_children()]
    modules = list(features.children())
    first = names.index("denseblock") if "denseblock" in names else len(names)
    expected = ["denseblock", "transition"] * (len(names[first:]) // 2 - 1) + ["denseblock", "norm_final"]
    if names[first:] != expected:
        return [], [], []
    return modules[:first], modules[first::2], modules[first + 1 :: 2]


def _run_stem(modules: list[nn.Module], images: Tensor, known: Collection[type[nn.Module]]) -> Tensor:
    """Norm, ReLU and pooling of the ImageNet form are computed again in the backward pass."""
    maps, rest = nn.Sequential(*modules[:1])(images), nn.Sequential(*modules[1:])
    is_own = [type(module) for module in rest] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    if not is_own or why_to_call(rest, known):
        return rest(maps)
    return recompute_in_backward(rest, maps, norm=rest[0])


def _why_to_call_stage(block: nn.Module, reader: nn.Module, known: Collection[type[nn.Module]]) -> str:
    """Say why a block and what reads it have to be called; empty if they can run over a feature buffer."""
    reason = why_to_call(block, known) or why_to_call(reader, known)
    if reason:
        return reason
    if [name for name, _ in reader.named_children()] not in READERS:
        return f"{type(reader).__name__} has been rearranged"
    layers = layers_of(block)
    num_features = layers[0].norm1.num_features
    for (name, _), layer in zip(block.named_children(), layers, strict=True):
        if {part for part, _ in layer.named_children()} not in LAYERS:
            return f"{name} has other parts than this network's own"
        if layer.norm1.num_features != num_features:
            return f"{name} does not read all that comes before it"
        num_features += last_convolution(layer).out_channels
    return ""


def _may_use_buffer(maps: Tensor, block: nn.Module, reason: str) -> bool:
    """Whether a stage may run over a feature buffer; if not, for the reason given or another, a warning says why."""
    if maps[:, 0].numel() < 2:
        return False  # too few values for statistics, which the norm layers themselves complain about
    if not reason and layers_of(block)[0].norm1.num_features != maps.shape[1]:
        reason = "its first layer does not read all that comes before it"
    if reason:
        _warn(reason)
    return not reason


def _warn(reason: str) -> None:
    warnings.warn(
        f"a part of the network runs without its feature buffer and keeps more memory: {reason}", stacklevel=3
    )
