"""Find the weights of a DenseNet, and their names, in a file that some program has saved."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
MOST_DOTS = 5  # in a name of the network, or of torchvision's old files


@dataclass(frozen=True, eq=False)
class Place:
    """A dict of tensors by name, and the prefix of the network's names in it.

    Attributes:
        content: The dict.
        keys: The keys that lead to the dict from the outermost one.
        prefix: Empty, or ends with a dot.
    """

    content: Mapping[Any, Any]
    keys: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def label(self) -> str:
        """The name of the place in a message; empty for the outermost dict without a prefix."""
        return ".".join((*self.keys, self.prefix)).strip(".")

    @property
    def rank(self) -> tuple[bool, int]:
        """The order of preference, lowest first."""
        key = self.keys[0] if self.keys else ""
        return bool(AVERAGED.search(self.label)), KEYS.index(key) if key in KEYS else len(KEYS)


def find_places(content: Mapping[Any, Any], own: Set[str]) -> list[Place]:
    """Find the places that hold the most tensors of a network, in order of preference; at least one place.

    Weights that are averaged over training come after those that are not, and keys that are not in `KEYS` after those
    that are.

    Args:
        content: Tensors by name, or dicts that hold such a dict, as a program has saved them.
        own: The network's names.

    Raises:
        ValueError: If nothing tells which place to take.
    """
    dicts = list(_dicts_of_tensors(content))
    counts = {
        Place(found, keys, prefix): count for keys, found in dicts for prefix, count in _prefixes(found, own).items()
    }
    if not counts:  # the largest dict gives the message that says most
        keys, found = max(dicts, key=lambda place: _num_tensors(place[1]), default=((), content))
        return [Place(found, keys)]
    places = sorted((place for place in counts if counts[place] == max(counts.values())), key=lambda place: place.rank)
    equal = [repr(place.label) for place in places if place.rank == places[0].rank]
    if len(equal) > 1:
        raise ValueError(f"the weights are there under {' and '.join(equal)}; save those that are wanted alone")
    return places


def named_as_own(places: list[Place], own: Set[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the first place, with the network's own names for its tensors.

    Everything else in the same dict keeps its name, except for the network's tensors in the other places, which are
    left out.

    Raises:
        ValueError: If a tensor of the network does not have the prefix that the others share.
    """
    first = places[0]
    others = {place.prefix for place in places[1:] if place.content is first.content}
    for given, value in first.content.items():
        name = _without_wrappers(str(given))
        prefix = _prefix_of(name, own)
        if prefix == "" != first.prefix and prefix not in others:
            raise ValueError(f"the names of the weights begin with {first.prefix!r}, but not {name!r}")
        if prefix not in others:
            yield own_name(name.removeprefix(first.prefix)) if prefix in (first.prefix, None) else name, value


def own_name(name: str) -> str:
    """Translate another program's name, without prefix, to the network's own. Unknown names stay as they are.

    So far the only other program is torchvision: its final norm layer, and the dotted names in its weight files.
    """
    name = re.sub(r"^features\.norm5\.", "features.norm_final.", name)
    return re.sub(r"(\.denselayer\d+\.(norm|conv))\.(?=[12]\.)", r"\1", name)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefix_of(name: str, own: Set[str]) -> str | None:
    """Return the prefix in front of a name of the network; None if the name, without wrappers, does not end in one."""
    parts = name.rsplit(".", maxsplit=MOST_DOTS + 1)
    tails = (".".join(parts[start:]) for start in range(len(parts)))
    return next((name.removesuffix(tail) for tail in tails if own_name(tail) in own), None)


def _prefixes(content: Mapping[Any, Any], own: Set[str]) -> Counter[str]:
    """Count the network's tensors in a dict by prefix, except for norm counters, which old files do not have."""
    names = (_without_wrappers(str(name)) for name, value in content.items() if isinstance(value, Tensor))
    prefixes = (_prefix_of(name, own) for name in names if not name.endswith(COUNTER))
    return Counter(prefix for prefix in prefixes if prefix is not None)


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
