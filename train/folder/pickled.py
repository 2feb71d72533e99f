"""A look into the pickle of a file of tensors before torch reads it: which types it needs, how much memory it asks for.

Nothing that a pickle names is imported or called here: a stand-in of this file, which does nothing, takes its place.
"""

import io
import math
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names in Python 2, which protocol 2 writes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from reprlib import repr as short_repr
from typing import Any, BinaryIO, ClassVar, NamedTuple

PICKLE = "data.pkl"  # in an archive
PROTOCOL = 2  # the only one that torch reads without running code
COUNT_SIZE = 8  # bytes, before each storage in files from before archives
DEEPEST = 6  # dicts inside one another that are searched for weights
MOST_SHARED = 100  # times that tensors may share the bytes of a file; that many layers with the same weights are rare

# Bytes of a number in torch's storages, by the beginning of their names.
ITEMSIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
ITEMSIZES |= {"Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}

# Tensors that are no plain arrays, by the function that makes them.
OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch.nested._internal.nested_tensor._rebuild_njt": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (on meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another kind",
}

# Types that programs put beside weights. Their values are left out, and stand-ins take their places in torch.load too:
# numpy's own functions, for instance, would believe any description of memory.
LEFT_OUT = {
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal", "fractions.Fraction"),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("", "Posix", "Windows")),
    *(f"{module}.Pure{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("", "Posix", "Windows")),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object")),
    *(f"builtins.{name}" for name in ("range", "slice", "str", "tuple")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "torch.torch_version.TorchVersion"),
}


class Refused(Exception):
    """A whole file holds something that is not read. The message says what, as in "a sparse tensor"."""


class LeftOut:
    """Takes the place of an object whose value nobody needs."""

    def __new__(cls, *_: Any, **__: Any) -> "LeftOut":
        """Ignore all arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore what the object was like."""


def as_dict(*_: Any) -> dict[Any, Any]:
    """Takes the place of defaultdict: a dict that is filled afterwards."""
    return {}


def as_list(*_: Any) -> list[Any]:
    """Takes the place of deque: a list that is filled afterwards."""
    return []


CONTAINERS = {"collections.defaultdict": as_dict, "collections.deque": as_list}
STAND_INS: dict[str, Callable[..., Any]] = dict.fromkeys(sorted(LEFT_OUT), LeftOut) | CONTAINERS


class Unknown(dict[Any, Any]):
    """Takes the place of an object of a type that is not known; what it was filled with is kept."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "Unknown":
        """Ignore all arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> "Unknown":
        """Be a function too."""
        return Unknown()

    def append(self, _: Any) -> None:
        """Be a list too."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def is_module(self) -> bool:
        """Whether it was a network."""
        return isinstance(self.state, dict) and "_modules" in self.state


class Storage(NamedTuple):
    """Numbers in memory, which tensors are views of."""

    itemsize: int
    numel: int


@dataclass
class Found:
    """What a pickle holds.

    Attributes:
        content: Plain values, `Storage` in place of tensors, and stand-ins.
        unknown: Names of types and functions that are not known to be harmless.
        left_out: Names of those that are.
        num_bytes: Size of all tensors, those that share memory included.
        protocol: Version of the pickle's form.
    """

    content: Any = None
    unknown: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    num_bytes: int = 0
    protocol: int = PROTOCOL

    def expression(self) -> str | None:
        """Where the weights are in what `torch.load` returns as `c`, as in "c['model']"; None if there are none."""
        found = max(_state_dicts(self.content), default=None, key=lambda pair: pair[0])
        return found[1] if found and found[0] else None


def _state_dicts(content: Any) -> Iterator[tuple[int, str]]:
    """Networks and dicts of tensors: how many tensors they hold, and the expression that leads to them."""
    level, seen = [("c", content)], set()
    for _ in range(DEEPEST):
        inner = []
        for path, part in level:
            if isinstance(part, dict) and id(part) not in seen:
                seen.add(id(part))
                is_module = isinstance(part, Unknown) and part.is_module
                tensors = sum(isinstance(value, Storage) for value in part.values())
                yield (10**9, f"{path}.state_dict()") if is_module else (tensors, path)
                inner += [(f"{path}[{key!r}]", part[key]) for key in part if isinstance(key, str | int)]
        level = inner


# Written in Python: the unpickler in C makes room for as many objects as a file says it has.
class _Inspector(pickle._Unpickler):
    """Reads a pickle as torch writes it.

    Args:
        file: It is read up to the end of one pickle.
        storage: Takes what a pickle says of a storage.
        found: Is filled.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[Any], Storage], found: Found):
        super().__init__(file, encoding="latin1")
        self.persistent_load = storage
        self.found = found
        self.functions = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _with_attributes,
            "collections.OrderedDict": dict,
            "collections.Counter": dict,
            "_codecs.encode": LeftOut,
            "builtins.bytearray": _copied_bytes,
            "builtins.set": LeftOut,
            "builtins.complex": LeftOut,
            "torch.Size": LeftOut,
            "torch.Tensor": None,  # named, and not called: it would take any amount of memory
            "torch.device": LeftOut,
        }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a type or function."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in self.functions:
            return self.functions[full]
        if full in STAND_INS:
            self.found.left_out.add(full)
            return STAND_INS[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name.removesuffix("Storage") in ITEMSIZES:
            return Storage(ITEMSIZES[name.removesuffix("Storage")], 0)
        if full in OTHER_TENSORS:
            raise Refused(OTHER_TENSORS[full])
        if (itemsize := _itemsize_of_dtype(module, name)) is not None:
            return itemsize
        if full not in self.found.unknown:
            self.found.unknown.append(full)
        return Unknown

    def load(self) -> Any:
        """Read one pickle."""
        content = super().load()
        self.found.protocol = self.proto
        return content

    def _load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Unknown):
            self.stack[-1].state = state

    dispatch: ClassVar = {
        **{code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]},
        pickle.BUILD[0]: _load_build,
    }

    def _tensor(self, storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Storage:
        _require_own_memory(storage, offset, tuple(size), tuple(stride))
        self.found.num_bytes += math.prod(size) * storage.itemsize
        return storage

    def _tensor_of_dtype(
        self, storage: Storage, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, itemsize: int, *_: Any
    ) -> Storage:
        typed = Storage(itemsize, storage.numel * storage.itemsize // itemsize)
        return self._tensor(typed, offset, size, stride)


def _first(first: Any, *_: Any) -> Any:
    return first


def _with_attributes(function: Callable[..., Any], _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    return function(*arguments)


def _copied_bytes(*arguments: Any) -> LeftOut:
    if any(isinstance(argument, int) for argument in arguments):
        raise Refused("an array of bytes without contents")  # of any size
    return LeftOut()


def _itemsize_of_dtype(module: str, name: str) -> int | None:
    import torch

    dtype = getattr(torch, name, None) if module == "torch" else None
    return dtype.itemsize if isinstance(dtype, torch.dtype) else None


def _require_own_memory(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Raise `Refused` unless each number of a tensor has its own place in what the file holds."""
    if any(number < 0 for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor has a negative shape")
    if not math.prod(size):
        return
    what = f"a tensor of shape {short_repr(size)}"
    reach = 0
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length > 1):
        if step <= reach:
            raise Refused(f"{what} whose numbers overlap in memory, as after expand(); save its clone() instead")
        reach += step * (length - 1)
    if offset + reach >= storage.numel:
        raise Refused(f"{what}, but only {storage.numel:,} numbers for it")


def inspect_archive(content: bytes) -> Found:
    """Look into a file of torch.save.

    Raises:
        Refused: If it holds tensors that are no plain arrays or ask for more memory than the file has.
        Exception: Of any type, if it is no such file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        if sum(sizes.values()) > len(content):
            raise ValueError("its members overlap")
        path = next(name for name in sizes if name.split("/")[1:] == [PICKLE])
        text = archive.read(path)
    folder = path.removesuffix(PICKLE)

    def storage(identity: Any) -> Storage:
        _, kind, key, _, numel = identity
        if not 0 <= numel * kind.itemsize <= sizes[f"{folder}data/{key}"]:
            raise ValueError(f"storage {key} is cut short")
        return Storage(kind.itemsize, numel)

    found = Found()
    found.content = _Inspector(io.BytesIO(text), storage, found).load()
    _require_proportion(found, len(content))
    return found


def inspect_before_archives(content: bytes) -> Found:
    """Look into a file that torch.save wrote before it wrote archives. Raises as `inspect_archive` does."""
    file, nothing, roots, found = io.BytesIO(content), Found(), {}, Found()

    def storage(identity: Any) -> Any:
        if identity[0] in ("module", b"module"):  # a type, with its source code
            return identity[1]
        _, kind, key, _, numel, view = identity
        roots[key] = Storage(kind.itemsize, numel)
        return Storage(kind.itemsize, numel if view is None else view[2])

    for _ in range(3):  # a number, a version, and what the machine was like
        _Inspector(file, storage, nothing).load()
    found.content = _Inspector(file, storage, found).load()
    _Inspector(file, storage, nothing).load()
    held = len(content) - file.tell()
    sizes = [COUNT_SIZE + math.prod(root) for root in roots.values()]
    if min(sizes, default=COUNT_SIZE) < COUNT_SIZE or held < sum(sizes):
        raise ValueError("it is cut short")
    _require_proportion(found, len(content))
    return found


def _require_proportion(found: Found, size: int) -> None:
    if found.num_bytes > MOST_SHARED * size:
        raise Refused(f"tensors of {found.num_bytes:,} bytes together, but only {size:,} bytes for them")
