"""How much memory the stages of a network take over feature buffers, told from their modules."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from .plan import NOTHING, StageSize
from .reader import norm_of_reader
from .stage import computing_dtype, has_bottleneck, last_convolution, layers_of


def sizes_of(
    maps: Tensor, stages: Sequence[tuple[nn.Module, nn.Module]], reasons: Sequence[str]
) -> Iterator[StageSize]:
    """Sizes of all stages.

    Args:
        maps: What the first block starts with, (N, C0, H, W).
        stages: Each block with what reads it.
        reasons: Why the modules of a stage are called; empty if they are not.
    """
    num_images, _, height, width = maps.shape
    itemsize = computing_dtype(maps).itemsize
    for i, ((block, reader), reason) in enumerate(zip(stages, reasons, strict=True)):
        if reason:
            yield NOTHING
            continue
        layers = layers_of(block)
        widths = [layer.conv1.out_channels for layer in layers if has_bottleneck(layer)]
        yield StageSize(
            num_rows=num_images * (height >> i) * (width >> i),
            num_features=norm_of_reader(reader).num_features,
            num_layers=len(layers),
            num_inner=max(widths, default=0),
            num_masked=sum(_columns_of_masks(block, reader)),
            itemsize=itemsize,
        )


def _columns_of_masks(block: nn.Module, reader: nn.Module) -> Iterator[int]:
    """Channels of all convolutions behind which values are dropped now."""
    for layer in layers_of(block):
        if layer.training and layer.drop_rate:
            yield last_convolution(layer).out_channels
        if layer.training and has_bottleneck(layer) and layer.bottleneck_drop_rate:
            yield layer.conv1.out_channels
    drop = getattr(reader, "drop", None)
    if drop is not None and drop.training and drop.p:
        yield reader.conv.out_channels
