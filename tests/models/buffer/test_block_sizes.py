"""The sizes of blocks, from which the memory plan is made, are those of the tensors that a step keeps."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models import DROP_PLACES, DenseNet
from models.buffer.function import block_over_buffer
from models.buffer.memory_plan import NO_BUFFER, BlockSize, sizes_of
from tests.support.network_pairs import BF16
from tests.support.tensor_measurements import bytes_saved_for_backward

KINDS = pytest.mark.parametrize("bn_size", [4, None], ids=["bottlenecks", "plain"])


def network_of(bn_size: int | None, drop_where: str, *, drop_rate: float = 0.2) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(4, (2, 3), 0.5, 8, bn_size, drop_rate, num_classes=5, drop_where=drop_where)


@pytest.mark.parametrize(("precision", "itemsize"), [(nullcontext, 4), (BF16, 2)], ids=["float32", "bf16"])
@KINDS
def test_sizes_of_blocks_count_all_masks(bn_size, precision, itemsize):
    network = network_of(bn_size, "convolutions")
    blocks = blocks_of(network)
    b = 16 if bn_size else 0
    first, second = (4 * 64, 16, 2, b), (4 * 16, 8 + 12, 3, b)
    masks = 2 * (4 + b) + 8, 3 * (4 + b)
    with precision():
        sizes = list(sizes_of(torch.zeros(4, 8, 8, 8), blocks, [True, True]))
        others = list(sizes_of(torch.zeros(4, 8, 8, 8), blocks, [False, True]))
    assert sizes == [BlockSize(*first, masks[0], itemsize), BlockSize(*second, masks[1], itemsize)]
    assert others == [NO_BUFFER, sizes[1]]


@KINDS
def test_sizes_of_blocks_count_no_mask_where_nothing_is_dropped(bn_size):
    networks = network_of(bn_size, "layers", drop_rate=0), network_of(bn_size, "convolutions").eval()
    for network in networks:
        sizes = sizes_of(torch.zeros(4, 8, 8, 8), blocks_of(network), [True, True])
        assert [size.num_masked for size in sizes] == [0, 0]
    only_layers = sizes_of(torch.zeros(4, 8, 8, 8), blocks_of(network_of(bn_size, "layers")), [True, True])
    assert [size.num_masked for size in only_layers] == [2 * 4, 3 * 4]


def blocks_of(network: DenseNet) -> list[tuple[nn.Module, nn.Module]]:
    _, block1, transition, block2, last = network.features
    return [(block1, transition), (block2, last)]


@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
@pytest.mark.parametrize("place", DROP_PLACES)
@KINDS
def test_sizes_are_those_of_everything_that_a_block_keeps(bn_size, place, precision):
    network = network_of(bn_size, place)
    x, blocks = torch.randn(4, 8, 8, 8), blocks_of(network)
    given = [x, *network.parameters(), *network.buffers()]
    with precision():
        size = next(sizes_of(x, blocks, [True, True]))
        kept = bytes_saved_for_backward(lambda: block_over_buffer(x, *blocks[0], num_bottlenecks=1), without=given)
    of_bottleneck = size.of_bottleneck if bn_size else 0
    # Three numbers of 32 bits for each channel of the buffer, and two for each of a bottleneck.
    statistics = 4 * (3 * size.num_features + 2 * size.num_layers * size.num_bottleneck)
    # Under autocast, the weights of convolutions as they were cast.
    weights = sum(p.numel() for module in blocks[0] for p in module.parameters() if p.dim() == 4)
    cast = 2 * weights if precision is BF16 else 0
    assert kept == size.of_buffer + size.of_masks + of_bottleneck + statistics + cast
