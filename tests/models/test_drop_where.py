"""Behind which convolutions values are dropped, and what that costs."""

from collections.abc import Callable
from contextlib import nullcontext
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import DROP_PLACES, STRATEGIES, DenseNet, densenet_bc, densenet_plain
from models.buffer.dropout import NO_DROPOUT, Dropout
from models.buffer.function import block_over_buffer
from models.buffer.memory_plan import NO_BUFFER, BlockSize, sizes_of
from models.buffer.rows import as_rows
from models.layers import DenseLayer, PlainLayer
from tests.support.network_pairs import BF16, FORMATS
from tests.support.tensor_measurements import (
    LiveStorages,
    OperationCounts,
    bytes_saved_for_backward,
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


def behind_convolutions(network: DenseNet, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each convolution makes, and what arrives at the next module or leaves the layer."""
    made, arrived = {}, {}

    def note(where: dict[str, Tensor], name: str) -> Callable[..., None]:
        return lambda module, inputs, *output: where.update({name: (output or inputs)[0].clone()})

    for name, module in network.named_modules():
        parent, _, own_name = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note(made, name))
        if isinstance(module, DenseLayer | PlainLayer):
            last = "conv2" if isinstance(module, DenseLayer) else "conv1"
            module.register_forward_hook(note(arrived, f"{name}.{last}"))
        if own_name in ("norm2", "pool"):
            convolution = {"norm2": "conv1", "pool": "conv"}[own_name]
            module.register_forward_pre_hook(note(arrived, f"{parent}.{convolution}"))
    network.features.denseblock1.register_forward_pre_hook(note(arrived, "features.conv0"))
    network(images)
    assert made.keys() == arrived.keys()
    return {name: (made[name], arrived[name]) for name in made}


def expected_places(bn_size: int | None, place: str) -> set[str]:
    layers = [f"features.denseblock{i}.denselayer{j}" for i, count in ((1, 2), (2, 3)) for j in range(1, count + 1)]
    last = {f"{layer}.conv2" if bn_size else f"{layer}.conv1" for layer in layers}
    if place == "layers":
        return last
    return last | {f"{layer}.conv1" for layer in layers} | {"features.transition1.conv"}


@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_values_are_dropped_behind_the_convolutions_that_are_named_and_no_others(bn_size, place):
    pairs = behind_convolutions(network_of(bn_size, place), random_images(side=32, images=16))
    dropping = {name for name, (made, arrived) in pairs.items() if not torch.equal(made, arrived)}
    assert dropping == expected_places(bn_size, place)
    for name in dropping:
        made, arrived = pairs[name]
        kept = arrived != 0
        torch.testing.assert_close(arrived[kept], made[kept] / 0.8)
        kept = kept[made != 0].double()  # Where each ReLU in front gives 0, a convolution makes 0.
        assert len(kept) > 0.9 * made.numel()
        assert abs(kept.mean().item() - 0.8) < 5 * sqrt(0.8 * 0.2 / len(kept))
        # Values are dropped one by one, and not a map as a whole.
        shares = (arrived != 0).flatten(2).double().mean(2)
        assert 0.6 < shares.min() <= shares.max() < 0.95


@pytest.mark.parametrize(("build", "depth"), [(densenet_plain, 10), (densenet_bc, 16)])
def test_builders_drop_behind_all_convolutions_but_the_first(build, depth):
    network = build(depth, 4, drop_rate=0.2, drop_where="convolutions", efficient=False)
    pairs = behind_convolutions(network, random_images())
    assert [name for name, (made, arrived) in pairs.items() if torch.equal(made, arrived)] == ["features.conv0"]
    assert len(pairs) == depth - 1


@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_nothing_is_dropped_in_eval_mode(bn_size, place):
    pairs = behind_convolutions(network_of(bn_size, place).eval(), random_images())
    assert [name for name, (made, arrived) in pairs.items() if not torch.equal(made, arrived)] == []


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
def test_without_another_convolution_to_drop_behind_both_places_are_the_same(drop_rate, strategy):
    config = {"drop_rate": drop_rate, "block_config": (2,), "bn_size": None}
    networks = [naive_and(strategy, **(SMALL | config), drop_where=place)[1] for place in DROP_PLACES]
    logits = []
    for network in networks:
        torch.manual_seed(1)
        logits.append(network(random_images()))
    assert torch.equal(*logits)


# The mask


@pytest.mark.parametrize("channels", [1, 7, 48])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_keeps_what_pytorch_keeps(dtype, memory_format, channels):
    maps = torch.randn(3, channels, 5, 4, dtype=dtype).contiguous(memory_format=memory_format)
    torch.manual_seed(1)
    expected, state = F.dropout(maps, 0.3), torch.get_rng_state()
    torch.manual_seed(1)
    rows = as_rows(maps).clone()
    dropout = Dropout.draw(0.3, rows, (3, 5, 4), channels, memory_format)
    assert dropout.mask.dtype == torch.bool
    assert torch.equal(torch.get_rng_state(), state)
    result = torch.cat([dropout.apply(rows[chunk].clone(), chunk) for chunk in (slice(0, 37), slice(37, 60))])
    torch.testing.assert_close(result, as_rows(expected))
    assert torch.equal(result == 0, as_rows(expected) == 0)


def test_nothing_dropped_leaves_rows_alone():
    rows = torch.randn(4, 3)
    assert NO_DROPOUT.apply(rows, slice(0, 4)) is rows
    assert NO_DROPOUT.mask is None


def test_drawing_takes_little_more_than_the_mask():
    rows = torch.zeros(0)
    with LiveStorages() as storages:
        mask = Dropout.draw(0.2, rows, (4, 16, 16), 32, torch.contiguous_format).mask
    assert mask.nbytes == 4 * 16 * 16 * 32
    assert storages.peak_bytes == 2 * mask.nbytes  # as maps, and as rows


# What the plan knows of masks


@pytest.mark.parametrize(("precision", "itemsize"), [(nullcontext, 4), (BF16, 2)], ids=["float32", "bf16"])
@KINDS
def test_sizes_of_stages_count_all_masks(bn_size, precision, itemsize):
    network = network_of(bn_size, "convolutions")
    stages = stages_of(network)
    b = 16 if bn_size else 0
    first, second = (4 * 64, 16, 2, b), (4 * 16, 8 + 12, 3, b)
    masks = 2 * (4 + b) + 8, 3 * (4 + b)
    with precision():
        sizes = list(sizes_of(torch.zeros(4, 8, 8, 8), stages, [True, True]))
        others = list(sizes_of(torch.zeros(4, 8, 8, 8), stages, [False, True]))
    assert sizes == [BlockSize(*first, masks[0], itemsize), BlockSize(*second, masks[1], itemsize)]
    assert others == [NO_BUFFER, sizes[1]]


@KINDS
def test_sizes_of_stages_count_no_mask_where_nothing_is_dropped(bn_size):
    networks = network_of(bn_size, "layers", drop_rate=0), network_of(bn_size, "convolutions").eval()
    for network in networks:
        sizes = sizes_of(torch.zeros(4, 8, 8, 8), stages_of(network), [True, True])
        assert [size.num_masked for size in sizes] == [0, 0]
    only_layers = sizes_of(torch.zeros(4, 8, 8, 8), stages_of(network_of(bn_size, "layers")), [True, True])
    assert [size.num_masked for size in only_layers] == [2 * 4, 3 * 4]


def stages_of(network: DenseNet) -> list[tuple[nn.Module, nn.Module]]:
    _, block1, transition, block2, last = network.features
    return [(block1, transition), (block2, last)]


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_sizes_are_those_of_all_that_a_stage_keeps(bn_size, place, precision):
    network = network_of(bn_size, place)
    maps, stages = torch.randn(4, 8, 8, 8), stages_of(network)
    given = [maps, *network.parameters(), *network.buffers()]
    with precision():
        size = next(sizes_of(maps, stages, [True, True]))
        kept = bytes_saved_for_backward(lambda: block_over_buffer(maps, *stages[0], num_bottlenecks=1), without=given)
    of_bottleneck = size.of_bottleneck if bn_size else 0
    # Three numbers of 32 bits for each channel of the buffer, and two for each of a bottleneck.
    statistics = 4 * (3 * size.num_features + 2 * size.num_layers * size.num_bottleneck)
    assert kept == size.of_buffer + size.of_masks + of_bottleneck + statistics
