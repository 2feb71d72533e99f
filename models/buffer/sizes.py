"""How much memory the stages of a network take over feature buffers, told from their modules."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from .function import computing_dtype, has_bottleneck, last_convolution, layers_of
from .memory_plan import NOTHING, StageSize

Stage = tuple[nn.Module, nn.Module | None]  # a dense block, and what reads it


def sizes_of(maps: Tensor, stages: Sequence[Stage], over_buffer: Sequence[bool]) -> Iterator[StageSize]:
    """Sizes of all stages.

    Args:
        maps: The first block starts with them, (N, C0, H, W).
        stages: Each block with what reads it.
        over_buffer: Which of them run over a buffer; the modules of others are called.
    """
    num_images, _, height, width = maps.shape
    itemsize = computing_dtype(maps).itemsize
    for i, ((block, reader), is_over_buffer) in enumerate(zip(stages, over_buffer, strict=True)):
        if not is_over_buffer:
            yield NOTHING
            continue
        layers = layers_of(block)
        widths = [layer.conv1.out_channels for layer in layers if has_bottleneck(layer)]
        yield StageSize(
            num_rows=num_images * (height >> i) * (width >> i),
            num_features=layers[0].norm1.num_features + sum(last_convolution(layer).out_channels for layer in layers),
            num_layers=len(layers),
            num_inner=max(widths, default=0),
            num_masked=sum(_columns_of_masks(block, reader)),
            itemsize=itemsize,
        )


def _columns_of_masks(block: nn.Module, reader: nn.Module | None) -> Iterator[int]:
    """Channels of all convolutions whose results have values dropped now."""
    for layer in layers_of(block):
        if layer.training and layer.drop_rate:
            yield last_convolution(layer).out_channels
        if layer.training and has_bottleneck(layer) and layer.bottleneck_drop_rate:
            yield layer.conv1.out_channels
    drop = getattr(reader, "drop", None)
    if drop is not None and drop.training and drop.p:
        yield reader.conv.out_channels
