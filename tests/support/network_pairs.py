"""Small networks of all kinds, pairs of a naive and an efficient network, and comparisons of how both train."""

import copy
import io
import pickle
from collections.abc import Iterator
from functools import partial
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from models import DenseNet
from tests.support.tensor_measurements import largest_difference, naive_and, random_images, record, train, unequal

SMALL = {"growth_rate": 4, "block_config": (3, 2), "num_init_features": 8, "num_classes": 5}
IMAGENET = SMALL | {"small_inputs": False}
PLAIN = SMALL | {"bn_size": None, "compression": 1}
DROPPING = {"drop_rate": 0.2, "drop_where": "convolutions"}
DROPOUTS = {"nothing": {}, "layers": {"drop_rate": 0.2}, "convolutions": DROPPING}
KINDS = {"bottlenecks": SMALL, "plain": PLAIN, "dropping": SMALL | DROPPING, "plain, dropping": PLAIN | DROPPING}
OF_ALL_KINDS = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
ROUNDING = 1e-10  # Largest relative difference between two ways to compute the same thing in 64 bits.
FORMATS = [torch.contiguous_format, torch.channels_last]
BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
LAYER = "features.denseblock1.denselayer2"


def naive_and_buffer(strategy: str = "buffer", **config) -> tuple[DenseNet, DenseNet]:
    naive, buffer = naive_and(strategy, **(SMALL | config))
    return naive.double(), buffer.double()


def naive_and_checkpoint(**config) -> tuple[DenseNet, DenseNet]:
    return naive_and("checkpoint", **(SMALL | config))


def doubles(**kwargs) -> Tensor:
    return random_images(**kwargs).double()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in record(network).items() if name.startswith("gradient of ")}


def assert_same_training(
    naive: nn.Module, efficient: nn.Module, images: Tensor, *, tolerance: float = ROUNDING, **kwargs
) -> None:
    """After each step both have the same records, but for rounding."""
    for step, (left, right) in enumerate(steps_of_both(naive, efficient, images, **kwargs)):
        assert largest_difference(right, left) <= tolerance, f"step {step}"


def assert_same_bits(naive: nn.Module, efficient: nn.Module, images: Tensor, **kwargs) -> None:
    """After each step both have the same records, bit for bit."""
    for step, (left, right) in enumerate(steps_of_both(naive, efficient, images, **kwargs)):
        assert unequal(left, right) == [], f"step {step}"


def steps_of_both(
    naive: nn.Module, efficient: nn.Module, images: Tensor, **kwargs
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Train both, and yield the records of each step."""
    expected, actual = (train(network, images, **kwargs) for network in (naive, efficient))
    yield from zip(expected, actual, strict=True)
    assert unequal(expected[0], expected[-1]), "the steps changed nothing, so this comparison shows nothing"


def accumulate(network: nn.Module, parts: tuple[Tensor, ...], order: tuple[int, ...]) -> dict[str, Tensor]:
    """Run forward over all parts of a batch, then backward over them in an order of its own."""
    losses = [network(part).square().sum() for part in parts]
    for index in order:
        losses[index].backward()
    return record(network)


def assert_copies_train_on(network: nn.Module, empty: nn.Module, images: Tensor) -> None:
    """A deep copy, an unpickled one and `empty` with the saved weights train on as the network that was copied."""
    train(network, images, steps=1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    empty.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), empty]

    expected = train(network, images, steps=2)
    for duplicate in copies:
        for left, right in zip(expected, train(duplicate, images, steps=2), strict=True):
            assert unequal(left, right) == []


def assert_buffers_stay(network: nn.Module, images: Tensor) -> None:
    """Training writes to the registered buffers and puts no others in their place."""
    before, names = dict(network.named_buffers()), list(network.state_dict())
    addresses = {name: buffer.data_ptr() for name, buffer in before.items()}
    train(network, images)
    after = dict(network.named_buffers())
    assert list(network.state_dict()) == names
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert {name: buffer.data_ptr() for name, buffer in after.items()} == addresses


def relative_errors(actual: dict[str, Tensor], truth: dict[str, Tensor], kind: str) -> float:
    """Root mean square, over the tensors of a kind, of the distance from the truth relative to its length."""
    names = [name for name in truth if kind in name]
    errors = [(actual[name].double() - truth[name]).norm() / truth[name].norm() for name in names]
    assert errors
    return sqrt(sum(error.item() ** 2 for error in errors) / len(errors))
