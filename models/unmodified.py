"""Whether a module still does what torch or this project wrote for its class.

A block over a feature buffer reads the parameters and settings of modules and never calls them. That is right only
where a call would do nothing else. There are more ways to make it do something else than anybody can list: hooks,
subclasses, parametrisations, a method replaced on one module or on a class, a function replaced in torch. So the list
here has the changes that are known to be harmless. Any other difference from the classes as they were shipped counts as
a modification.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# A call of a module looks up none of these names, so it does the same whatever they are.
HARMLESS = frozenset(
    [
        # to describe
        "__repr__",
        "__str__",
        "__dir__",
        "__doc__",
        "__annotations__",
        "__module__",
        "__firstlineno__",
        "__static_attributes__",
        "__weakref__",
        "__dict__",
        "extra_repr",
        "_get_name",
        "_version",
        "dump_patches",
        "T_destination",
        # to build
        "__init__",
        "__init_subclass__",
        "__setattr__",
        "__delattr__",
        "__setstate__",
        "__getstate__",
        "__reduce__",
        "__reduce_ex__",
        "call_super_init",
        "add_module",
        "register_module",
        "register_buffer",
        "register_parameter",
        "reset_parameters",
        "reset_running_stats",
        "append",
        "extend",
        "insert",
        "pop",
        "_replicate_for_data_parallel",
        # to move
        "_apply",
        "apply",
        "to",
        "to_empty",
        "cpu",
        "cuda",
        "ipu",
        "xpu",
        "mtia",
        "type",
        "float",
        "double",
        "half",
        "bfloat16",
        "share_memory",
        # to train
        "train",
        "eval",
        "requires_grad_",
        "zero_grad",
        "compile",
        # to save
        "state_dict",
        "load_state_dict",
        "_save_to_state_dict",
        "_load_from_state_dict",
        "get_extra_state",
        "set_extra_state",
        "_register_state_dict_hook",
        "_register_load_state_dict_pre_hook",
        "register_state_dict_pre_hook",
        "register_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
        # to hook
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_backward_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        # to find parts
        "get_submodule",
        "set_submodule",
        "get_parameter",
        "get_buffer",
        "parameters",
        "named_parameters",
        "buffers",
        "named_buffers",
    ]
)

# Methods that a call goes through. They are checked when a class is registered, in case somebody has replaced them
# earlier.
CALLED = (
    "__call__",
    "_call_impl",
    "_compiled_call_impl",
    "forward",
    "_conv_forward",
    "_check_input_dim",
    "__getattr__",
)
SHIPPED_FROM = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))

# Functions of torch that the forward methods of the registered classes call.
FUNCTIONS = {
    (F, "batch_norm"): F.batch_norm,
    (F, "relu"): F.relu,
    (F, "conv2d"): F.conv2d,
    (F, "dropout"): F.dropout,
    (F, "avg_pool2d"): F.avg_pool2d,
    (F, "max_pool2d"): F.max_pool2d,
    (F, "adaptive_avg_pool2d"): F.adaptive_avg_pool2d,
    (torch, "cat"): torch.cat,
}


class _Shipped:
    """The namespaces of a class and of its base classes, as they were when it was registered."""

    def __init__(self, cls: type[nn.Module]):
        self.namespaces = [(owner, dict(vars(owner))) for owner in cls.__mro__ if owner is not object]
        self.names = frozenset(dir(cls)) - HARMLESS
        self.forward, self.call = cls.forward, cls.__call__
        self.foreign = [f"{cls.__name__}.{name}" for name in CALLED if _is_foreign(getattr(cls, name, None))]

    def changes(self, attributes: Callable[[], set[str]]) -> list[str]:
        """Return the names that have been replaced, since the class was registered or earlier.

        Args:
            attributes: Returns the names of everything that modules of the class hold. A new name in a class is
                harmless if no call looks it up.
        """
        found = list(self.foreign)
        for owner, shipped in self.namespaces:
            now = vars(owner)
            if now == shipped:  # in 4 microseconds for all of them
                continue
            differing = {name for name in now.keys() | shipped.keys() if now.get(name) is not shipped.get(name)}
            looked_up = differing & (self.names | attributes())
            found += [f"{owner.__name__}.{name}" for name in sorted(looked_up)]
        return found


_registered: dict[type[nn.Module], _Shipped] = {}


def register(*classes: type[nn.Module]) -> None:
    """Declare that these classes, but not their subclasses, do only what their parameters and settings say."""
    _registered.update((cls, _Shipped(cls)) for cls in classes)


def why_modified(name: str, module: nn.Module) -> str:
    """Say why a call of a module may do more than its class does, its parts left aside; empty for no reason.

    `why_classes_modified` is the other half: it looks at the class itself.

    Args:
        name: The module's name in the message; may be empty.
        module: A module of any class.
    """
    described = f"{name} ({type(module).__name__})" if name else type(module).__name__
    shipped = _registered.get(type(module))
    if shipped is None:
        return f"{described} is of a class that it does not know"
    own = sorted(shipped.names & vars(module).keys())
    if own:
        return f"{described} has a {own[0]} of its own"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return f"{described} has hooks"
    return ""


def why_classes_modified(modules: Iterable[nn.Module]) -> str:
    """Say what has been replaced in the classes of some modules or the functions that they call; empty for nothing.

    Hooks for all modules count too, and so do modes that see each function of torch before it runs.
    """
    if _has_global_hooks():
        return "there are hooks for all modules"
    if torch._C._len_torch_function_stack():
        modes = torch.overrides._get_current_function_mode_stack()
        # A default device, as `with torch.device(...)` sets it, only says where new tensors are created.
        others = [type(mode).__name__ for mode in modes if not isinstance(mode, DeviceContext)]
        if others:
            return f"{others[0]} may replace functions of torch"
    functions = FUNCTIONS.items()
    replaced = [
        f"{owner.__name__}.{name}" for (owner, name), shipped in functions if getattr(owner, name) is not shipped
    ]
    by_class: dict[type[nn.Module], list[nn.Module]] = {}
    for module in modules:
        by_class.setdefault(type(module), []).append(module)
    for cls, of_class in by_class.items():
        if cls in _registered:
            replaced += _registered[cls].changes(partial(_attributes, of_class))
    return f"{replaced[0]} has been replaced" if replaced else ""


def are_unwatched(*modules: nn.Module) -> bool:
    """Tell whether only the caller of these modules sees their inputs and outputs, so that these may be overwritten.

    Hooks and replaced methods see them too, and so do tracers that record calls of modules, as torch.fx does by
    replacing `__call__`. This runs at each call of each ReLU, and looks at no more than it needs to.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _has_global_hooks():
        return False
    return all(map(_is_unwatched, modules))


def _is_unwatched(module: nn.Module) -> bool:
    cls = type(module)
    shipped = _registered.get(cls)
    return (
        shipped is not None
        and cls.forward is shipped.forward
        and cls.__call__ is shipped.call
        and vars(module).keys().isdisjoint(CALLED)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def _has_global_hooks() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def _attributes(modules: list[nn.Module]) -> set[str]:
    """Return the names of everything that modules hold: settings, parameters, buffers and other modules."""
    return {
        name for module in modules for name in chain(vars(module), module._parameters, module._buffers, module._modules)
    }


def _is_foreign(method: Any) -> bool:
    """Tell whether a method was written neither in torch nor here. Methods in C cannot be replaced."""
    code = getattr(method, "__code__", None)
    return code is not None and not code.co_filename.startswith(SHIPPED_FROM)


register(nn.Sequential, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.ReLU, nn.AvgPool2d, nn.MaxPool2d)
