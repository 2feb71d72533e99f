"""Values are dropped after the convolutions that `drop_where` names, and after no others."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from models import DROP_PLACES, STRATEGIES, DenseNet, densenet_bc, densenet_plain
from models.layers import DenseLayer, PlainLayer
from tests.support.tensor_measurements import (
    OperationCounts,
    naive_and,
    random_images,
)

SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}
KINDS = pytest.mark.parametrize("bn_size", [4, None], ids=["bottlenecks", "plain"])


def network_of(bn_size: int | None, place: str, efficient: str = "naive", **config) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(
        **(SMALL | {"bn_size": bn_size, "drop_rate": 0.2, "drop_where": place} | config), efficient=efficient
    )


def after_convolutions(network: DenseNet, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the result of each convolution, and the tensor that arrives at the next module or leaves the layer."""
    results, arrived = {}, {}

    def note(where: dict[str, Tensor], name: str) -> Callable[..., None]:
        return lambda module, inputs, *output: where.update({name: (output or inputs)[0].clone()})

    for name, module in network.named_modules():
        parent, _, own_name = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note(results, name))
        if isinstance(module, DenseLayer | PlainLayer):
            last = "conv2" if isinstance(module, DenseLayer) else "conv1"
            module.register_forward_hook(note(arrived, f"{name}.{last}"))
        if own_name in ("norm2", "pool"):
            convolution = {"norm2": "conv1", "pool": "conv"}[own_name]
            module.register_forward_pre_hook(note(arrived, f"{parent}.{convolution}"))
    network.features.denseblock1.register_forward_pre_hook(note(arrived, "features.conv0"))
    network(images)
    assert results.keys() == arrived.keys()
    return {name: (results[name], arrived[name]) for name in results}


def expected_places(bn_size: int | None, place: str) -> set[str]:
    layers = [f"features.denseblock{i}.denselayer{j}" for i, count in ((1, 2), (2, 3)) for j in range(1, count + 1)]
    last = {f"{layer}.conv2" if bn_size else f"{layer}.conv1" for layer in layers}
    if place == "layers":
        return last
    return last | {f"{layer}.conv1" for layer in layers} | {"features.transition1.conv"}


@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_values_are_dropped_after_the_convolutions_that_are_named_and_no_others(bn_size, place):
    pairs = after_convolutions(network_of(bn_size, place), random_images(side=32, images=16))
    dropping = {name for name, (result, arrived) in pairs.items() if not torch.equal(result, arrived)}
    assert dropping == expected_places(bn_size, place)
    for name in dropping:
        result, arrived = pairs[name]
        kept = arrived != 0
        torch.testing.assert_close(arrived[kept], result[kept] / 0.8)
        kept = kept[result != 0].double()  # Where its whole input is 0, a convolution gives 0.
        assert len(kept) > 0.9 * result.numel()
        assert abs(kept.mean().item() - 0.8) < 5 * sqrt(0.8 * 0.2 / len(kept))
        # Values are dropped one by one, and not a whole channel.
        kept_fractions = (arrived != 0).flatten(2).double().mean(2)
        assert 0.6 < kept_fractions.min() <= kept_fractions.max() < 0.95


@pytest.mark.parametrize(("build", "depth"), [(densenet_plain, 10), (densenet_bc, 16)])
def test_builders_drop_after_every_convolution_except_the_first(build, depth):
    network = build(depth, 4, drop_rate=0.2, drop_where="convolutions", efficient=False)
    pairs = after_convolutions(network, random_images())
    assert [name for name, (result, arrived) in pairs.items() if torch.equal(result, arrived)] == ["features.conv0"]
    assert len(pairs) == depth - 1


@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_nothing_is_dropped_in_eval_mode(bn_size, place):
    pairs = after_convolutions(network_of(bn_size, place).eval(), random_images())
    assert [name for name, (result, arrived) in pairs.items() if not torch.equal(result, arrived)] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_random_numbers_are_drawn_once_for_each_convolution_that_drops(bn_size, place, strategy):
    network = network_of(bn_size, place, strategy)
    with OperationCounts() as mode:
        network(random_images()).sum().backward()
    assert mode.counts["bernoulli_"] == len(expected_places(bn_size, place))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("drop_rate", [0, 0.2])
def test_without_another_convolution_to_drop_after_both_places_are_the_same(drop_rate, strategy):
    config = {"drop_rate": drop_rate, "block_config": (2,), "bn_size": None}
    networks = [naive_and(strategy, **(SMALL | config), drop_where=place)[1] for place in DROP_PLACES]
    logits = []
    for network in networks:
        torch.manual_seed(1)
        logits.append(network(random_images()))
    assert torch.equal(*logits)
