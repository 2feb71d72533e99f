"""Find the weights of a DenseNet, and their names, in a file that some program has saved."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .weight_layouts import LAYOUTS, Layout

# Parts of names that torch's own wrappers insert: DataParallel and AveragedModel, torch.compile, FSDP, and the wrapper
# of activation checkpoints. The last two also wrap modules inside a network. No name in a DenseNet has such a part.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Keys under which programs save the weights that are meant to be used, in order of preference. "chosen" is the key in
# the checkpoint.pt of a run, "model_state_dict" the one in PyTorch's tutorials.
KEYS = ("chosen", "state_dict", "model", "model_state_dict")
# An average over training, such as timm's "state_dict_ema" and torchvision's "model_ema".
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
COUNTER = "num_batches_tracked"  # of a norm layer; older files have none
DEEPEST = 4  # levels of nested dicts that are searched


@dataclass(frozen=True, eq=False)
class Place:
    """A dict of tensors by name, and how the names of a network's tensors are written in it.

    Attributes:
        content: The dict.
        keys: The keys that lead to the dict from the outermost one.
        prefix: What all of the names begin with: empty, or a text that ends with a dot.
        layout: The program whose names follow the prefix.
    """

    content: Mapping[Any, Any]
    keys: tuple[str, ...] = ()
    prefix: str = ""
    layout: Layout = LAYOUTS[0]

    @property
    def label(self) -> str:
        """The name of the place in a message; empty for the outermost dict without a prefix."""
        return ".".join((*self.keys, self.prefix)).strip(".")

    @property
    def rank(self) -> tuple[bool, int]:
        """The order of preference, lowest first."""
        key = self.keys[0] if self.keys else ""
        return bool(AVERAGED.search(self.label)), KEYS.index(key) if key in KEYS else len(KEYS)

    def own_name(self, name: str) -> str | None:
        """Translate a name in the dict to this program's name; None if it is not the name of a tensor of the place."""
        read = self.layout.read(name)
        return read[1] if read and read[0] == self.prefix else None


def find_places(content: Mapping[Any, Any], own: Set[str] | None = None) -> list[Place]:
    """Find the places that hold the most tensors of a network, in order of preference; at least one place.

    A place holds tensors of a dense layer at least: other networks have a `conv1` and an `fc` too. Weights that are
    averaged over training come after those that are not, and keys that are not in `KEYS` after those that are.

    Args:
        content: Tensors by name, or dicts that hold such a dict, as a program has saved them.
        own: This program's names for the tensors of the network. None: any DenseNet will do.

    Raises:
        ValueError: If nothing tells which place to take.
    """
    dicts = list(_dicts_of_tensors(content))
    counts = {
        Place(found, keys, prefix, layout): count
        for keys, found in dicts
        for layout in LAYOUTS
        for prefix, count in _prefixes(found, layout, own).items()
    }
    if not counts:  # the largest dict gives the message that says most
        keys, found = max(dicts, key=lambda place: _num_tensors(place[1]), default=((), content))
        return [Place(found, keys)]
    places = sorted((place for place in counts if counts[place] == max(counts.values())), key=lambda place: place.rank)
    equal = [repr(place.label) for place in places if place.rank == places[0].rank]
    if len(equal) > 1:
        raise ValueError(f"the weights are there under {' and '.join(equal)}; save those that are wanted alone")
    return places


def named_as_own(places: list[Place]) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the first place, with this program's names for the tensors of a DenseNet.

    Everything else in the same dict keeps its name, except for the tensors of the other places, which are left out.

    Raises:
        ValueError: If a tensor of a DenseNet has not the prefix that the others share, or not a name of their program.
    """
    first = places[0]
    others = [place for place in places[1:] if place.content is first.content]
    for given, value in first.content.items():
        name = _without_wrappers(str(given))
        own = first.own_name(name)
        if own is not None:
            yield own, value
        elif not any(place.own_name(name) for place in others):
            if any(read and not read[0] for read in (first.layout.read(name), LAYOUTS[0].read(name))):
                common = f"begin with {first.prefix!r}" if first.prefix else f"are those of {first.layout.title}"
                raise ValueError(f"the names of the weights {common}, but not {name!r}")
            yield name, value


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(content: Mapping[Any, Any], layout: Layout, own: Set[str] | None) -> Counter[str]:
    """Count a network's tensors in a dict by prefix, except for norm counters, which old files do not have."""
    names = (_without_wrappers(str(name)) for name, value in content.items() if isinstance(value, Tensor))
    read = [pair for pair in map(layout.read, names) if pair and not pair[1].endswith(COUNTER)]
    of_network = [(prefix, name) for prefix, name in read if own is None or name in own]
    of_layers = {prefix for prefix, name in of_network if "denselayer" in name}
    return Counter(prefix for prefix, _ in of_network if prefix in of_layers)


def _dicts_of_tensors(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield all dicts that hold tensors, with the keys that lead to them; the outermost one first."""
    seen = {id(content)}  # a dict may hold itself
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for _ in range(DEEPEST):
        inner: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        for keys, found in level:
            if _num_tensors(found):
                yield keys, found
            for key, value in found.items():
                if isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    inner.append(((*keys, str(key)), value))
        level = inner


def _num_tensors(content: Mapping[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in content.values())
