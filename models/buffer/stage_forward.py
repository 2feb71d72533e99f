"""What the forward passes of all dense layers over one feature buffer have in common, of either kind.

R rows, N images, H x W pixels; c channels that a layer reads, k that it makes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import Affine
from .dropout import NO_DROPOUT, Dropout
from .feature_buffer import FeatureBuffer
from .norms import Norm, RunningStatistics
from .rows import as_maps, as_rows, chunks_of_images
from .workspace import Workspace


@dataclass(frozen=True)
class StageForward:
    """The forward pass of a dense block, whose layers run one after the other.

    Attributes:
        buffer: The maps of a layer are written after the rest.
        work: Of the block.
        running: Notes how running statistics are to move.
        memory_format: In which the plain network would work; which values dropout drops depends on it.
    """

    buffer: FeatureBuffer
    work: Workspace
    running: RunningStatistics
    memory_format: torch.memory_format

    def note(self, module: nn.BatchNorm2d) -> Norm:
        """Note that a norm layer reads the first channels, so that its running statistics move."""
        self.running.note(module, self.buffer.statistics.mean, self.buffer.statistics.unbiased)
        return Norm.of(module)

    def read(self, module: nn.BatchNorm2d, gamma: Tensor, beta: Tensor) -> tuple[Norm, Affine]:
        """Let a norm layer with parameters gamma and beta (c,) read the first c channels; return what it does."""
        norm = self.note(module)
        return norm, norm.reading(gamma, beta, self.buffer.statistics, self.buffer.num_rows).affine

    def draw_dropout(self, drop_rate: float, num_columns: int, *, training: bool) -> Dropout:
        """Draw what the plain network keeps of its next maps, those that dropout reaches first; (R, num_columns)."""
        if not (drop_rate and training):
            return NO_DROPOUT
        return Dropout.draw(drop_rate, self.buffer.rows, self.buffer.shape, num_columns, self.memory_format)

    def append(self, activated: Callable[[slice], Tensor], weight: Tensor, dropout: Dropout) -> None:
        """Write the maps of a 3x3 convolution into the buffer.

        Args:
            activated: Gives what the convolution reads of a chunk of rows, (r, b).
            weight: (k, b, 3, 3), of any type.
            dropout: Of the new maps.
        """
        rows, weight = self.buffer.rows, weight.to(self.buffer.rows.dtype)
        new = rows.new_empty(self.buffer.num_rows, weight.shape[0])
        for images, chunk in chunks_of_images(rows, self.work.shape, max(weight.shape[:2])):
            maps = as_maps(activated(chunk), self.work.shape_of(images))
            new[chunk] = dropout.of(as_rows(F.conv2d(maps, weight, padding=1)), chunk)
        self.buffer.append(new)
