"""Which bottlenecks a network keeps for its backward pass because that costs nothing at the peak of a step.

The peak is reached in the backward pass of one block, mostly the first, when the later ones have freed what they kept.
Until then memory lies idle: where it has room for bottlenecks of later blocks, keeping them saves computing them again.

All large tensors have the same dtype, except for dropout masks, which take a byte for each value and are kept in any
case. R rows and C channels of the feature buffer of a block, m layers, b channels of a bottleneck.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor, nn

from ..layers import DenseLayer, Transition
from .function import computing_dtype, layers_of

BlockWithTransition = tuple[nn.Module, nn.Module | None]  # the last block has a final norm instead, or nothing


class BlockSize(NamedTuple):
    """The size of a dense block with its transition.

    Attributes:
        num_rows: R.
        num_features: C.
        num_layers: m.
        num_bottleneck: b, the largest of all layers; 0 without bottlenecks, all of which are then free to keep.
        num_masked: Columns of all dropout masks.
        itemsize: Bytes of a number.
    """

    num_rows: int
    num_features: int
    num_layers: int
    num_bottleneck: int
    num_masked: int
    itemsize: int

    @property
    def of_buffer(self) -> int:
        """Bytes of the buffer, and of its gradient."""
        return self.itemsize * self.num_rows * self.num_features

    @property
    def of_bottleneck(self) -> int:
        """Bytes of one bottleneck."""
        return self.itemsize * self.num_rows * self.num_bottleneck

    @property
    def of_masks(self) -> int:
        """Bytes of all dropout masks."""
        return self.num_rows * self.num_masked


NO_BUFFER = BlockSize(0, 0, 0, 0, 0, 0)  # the size of a block whose modules are called


def sizes_of(x: Tensor, blocks: Sequence[BlockWithTransition], over_buffer: Sequence[bool]) -> Iterator[BlockSize]:
    """Compute the sizes of all blocks.

    Args:
        x: Input of the first block (N, C0, H, W).
        blocks: Each block with its transition.
        over_buffer: Which of them run over a buffer; the modules of the others are called.
    """
    num_images, _, height, width = x.shape
    itemsize = computing_dtype(x).itemsize
    for i, ((block, transition), is_over_buffer) in enumerate(zip(blocks, over_buffer, strict=True)):
        if not is_over_buffer:
            yield NO_BUFFER
            continue
        layers = layers_of(block)
        bottlenecks = [layer.bottleneck_features for layer in layers if isinstance(layer, DenseLayer)]
        yield BlockSize(
            num_rows=num_images * (height >> i) * (width >> i),
            num_features=layers[0].num_input_features + sum(layer.growth_rate for layer in layers),
            num_layers=len(layers),
            num_bottleneck=max(bottlenecks, default=0),
            num_masked=sum(_columns_of_masks(block, transition)),
            itemsize=itemsize,
        )


def _columns_of_masks(block: nn.Module, transition: nn.Module | None) -> Iterator[int]:
    """Yield the output channels of each convolution that dropout follows now."""
    for layer in layers_of(block):
        if layer.training and layer.drop_rate:
            yield layer.growth_rate
        if layer.training and isinstance(layer, DenseLayer) and layer.bottleneck_drop_rate:
            yield layer.bottleneck_features
    drop = transition.dropout if isinstance(transition, Transition) else None
    if isinstance(transition, Transition) and drop is not None and drop.training and drop.p:
        yield transition.conv.out_channels


@lru_cache
def bottlenecks_for_free(blocks: tuple[BlockSize, ...], *, is_small: bool = False) -> tuple[int, ...]:
    """Compute how many of its last layers each block can let keep their bottlenecks without a higher peak.

    The last blocks come first: the memory that they take is freed first, and their layers read the most channels, so
    that computing their bottlenecks again would take the longest.

    Args:
        blocks: The size of each block.
        is_small: Whether a bottleneck that is computed again never exists as a whole.
    """
    counts = [0] * len(blocks)
    limit = _peak(blocks, counts, is_small=is_small)
    for i in reversed(range(len(blocks))):
        fitting = range(blocks[i].num_layers, -1, -1)
        counts[i] = next(
            n for n in fitting if _peak(blocks, [*counts[:i], n, *counts[i + 1 :]], is_small=is_small) <= limit
        )
    return tuple(counts)


def _peak(blocks: Sequence[BlockSize], counts: Sequence[int], *, is_small: bool) -> int:
    """Compute the most bytes that are alive in the backward pass, leaving out all that is the same in every block.

    Alive in the backward pass of a block is all that this block and earlier ones keep, one buffer of gradients, the
    gradient of a bottleneck, and one bottleneck that is computed again, unless `is_small`.
    """
    kept, most = 0, 0
    for block, count in zip(blocks, counts, strict=True):
        kept += block.of_buffer + block.of_masks + count * block.of_bottleneck
        num_bottlenecks = 1 if is_small or count == block.num_layers else 2
        most = max(most, kept + block.of_buffer + num_bottlenecks * block.of_bottleneck)
    return most
