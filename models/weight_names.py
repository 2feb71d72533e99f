"""Where the weights of a DenseNet are among what a program has saved, and which names they have there."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Parts of names that torch's own wrappers insert: DataParallel and AveragedModel, torch.compile, FSDP, and the wrapper
# of activation checkpoints. The last two also wrap modules inside a network. No name of a DenseNet has such a part.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Keys under which programs put the weights that are meant to be used, the first one first: "chosen" is that of
# checkpoint.pt in the folder of a run, "model_state_dict" that of PyTorch's tutorials.
KEYS = ("chosen", "state_dict", "model", "model_state_dict")
# An average over training, as in timm's "state_dict_ema" and torchvision's "model_ema".
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
COUNTER = "num_batches_tracked"  # of a norm layer; files that are older than it do without
DEEPEST = 4  # dicts inside one another that are searched
MOST_DOTS = 5  # in a name of the network, or of torchvision's old files


@dataclass(frozen=True, eq=False)
class Place:
    """A dict of tensors by name, and the prefix that the network's names have in it.

    Attributes:
        content: The dict.
        keys: Lead to it from what the program has saved.
        prefix: Empty, or ends with a dot.
    """

    content: Mapping[Any, Any]
    keys: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def label(self) -> str:
        """Names the place in a message; empty where all that was saved is the dict, without a prefix."""
        return ".".join((*self.keys, self.prefix)).strip(".")

    @property
    def rank(self) -> tuple[bool, int]:
        """The lower, the earlier it is taken."""
        key = self.keys[0] if self.keys else ""
        return bool(AVERAGED.search(self.label)), KEYS.index(key) if key in KEYS else len(KEYS)


def find_places(content: Mapping[Any, Any], own: Set[str]) -> list[Place]:
    """All places that hold the most of a network's tensors, the one to take first; at least one place.

    Weights that are averaged over training come after those that are not, and keys that are not in `KEYS` after those
    that are.

    Args:
        content: What a program has saved: tensors by name, or dicts that hold such a dict.
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
    """Names and values of the first place, those of the network under its own names.

    All else in the same dict keeps its name, but for the network's tensors of the other places, which are left out.

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
    """The network's own name of what another program calls `name`, without prefix. Unknown names stay as they are.

    So far other programs are torchvision: its last norm layer, and the dotted names in its files of weights.
    """
    name = re.sub(r"^features\.norm5\.", "features.norm_final.", name)
    return re.sub(r"(\.denselayer\d+\.(norm|conv))\.(?=[12]\.)", r"\1", name)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefix_of(name: str, own: Set[str]) -> str | None:
    """The prefix of a name without wrappers, after which a name of the network follows; None if none does."""
    parts = name.rsplit(".", maxsplit=MOST_DOTS + 1)
    tails = (".".join(parts[start:]) for start in range(len(parts)))
    return next((name.removesuffix(tail) for tail in tails if own_name(tail) in own), None)


def _prefixes(content: Mapping[Any, Any], own: Set[str]) -> Counter[str]:
    """How many of the network's tensors a dict holds, by their prefix; counters, which old files lack, do not count."""
    names = (_without_wrappers(str(name)) for name, value in content.items() if isinstance(value, Tensor))
    prefixes = (_prefix_of(name, own) for name in names if not name.endswith(COUNTER))
    return Counter(prefix for prefix in prefixes if prefix is not None)


def _dicts_of_tensors(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """All dicts that hold tensors, with the keys that lead to them; the outermost one first."""
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
