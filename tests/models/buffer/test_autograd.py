from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from models.buffer.autograd import flatten, unflatten


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Part:
    weight: Tensor | None
    name: str
    pair: Pair


FIRST, SECOND, THIRD = (torch.full((2,), float(i)) for i in range(3))

STRUCTURES = {
    "a tensor": (FIRST, [FIRST]),
    "nothing": (None, []),
    "an empty tuple": ((), []),
    "a parameter": (torch.nn.Parameter(FIRST), [FIRST]),
    "a tuple": ((FIRST, 1.5, SECOND), [FIRST, SECOND]),
    "a list of lists": ([[FIRST], [], [SECOND, None]], [FIRST, SECOND]),
    "a named tuple": (Pair(FIRST, "text"), [FIRST]),
    "a dataclass": (Part(None, "first", Pair(FIRST, (SECOND, True))), [FIRST, SECOND]),
    "a tensor twice": (Pair(FIRST, FIRST), [FIRST, FIRST]),
    "all of them": ([Part(FIRST, "a", Pair(SECOND, ())), (torch.Size([2]), THIRD)], [FIRST, SECOND, THIRD]),
}


def equal(left: Any, right: Any) -> bool:
    """Compare structures; tensors by their values."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, tuple | list):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, Part):
        return isinstance(right, Part) and equal(list(vars(left).values()), list(vars(right).values()))
    return type(left) is type(right) and left == right


def tensors_in(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(tensors_in, value))
    return tensors_in(list(vars(value).values())) if isinstance(value, Part) else isinstance(value, Tensor)


@pytest.mark.parametrize("name", STRUCTURES)
def test_tensors_are_taken_out_in_order_and_put_back(name):
    value, expected = STRUCTURES[name]
    structure, tensors = flatten(value)
    assert equal(tensors, expected)
    assert tensors_in(structure) == 0
    assert equal(unflatten(structure, tensors), value)


def test_other_tensors_can_take_the_places():
    structure, _ = flatten(Part(FIRST, "first", Pair(1, SECOND)))
    rebuilt = unflatten(structure, (THIRD, FIRST))
    assert equal(rebuilt, Part(THIRD, "first", Pair(1, FIRST)))
