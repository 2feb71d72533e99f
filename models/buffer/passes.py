"""State that all parts of a dense block share in the forward pass, and in the backward pass.

A part is a dense layer of either kind, a transition or a final norm. Each is a class with the same shape: `forward`
takes a module and a `BlockForward` and returns an object with all that the backward pass needs; its `backward` takes a
`BlockBackward` and returns the gradients of the module's parameters.

R rows, N images, H x W pixels, C channels of the block, c of them read by a part, k of them made by a layer.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import NO_DROPOUT, Dropout
from .feature_buffer import FeatureBuffer, GradientBuffer, Workspace
from .norms import BufferNorm, Norm, RunningStatistics, Statistics
from .operations import Affine
from .rows import Shape, as_nchw, as_rows


class BlockForward:
    """The forward pass of a dense block, whose parts run one after the other.

    Args:
        x: Input of the block (N, C0, H, W).
        num_features: Channels C of the whole block.
        dtype: The dtype to compute in.
        memory_format: The memory format of the plain network; which values dropout drops depends on it.

    Attributes:
        buffer: Holds the normalised channels; layers append theirs.
        work: Scratch memory.
        running: Notes how running statistics change.
    """

    def __init__(self, x: Tensor, num_features: int, dtype: torch.dtype, memory_format: torch.memory_format):
        self.buffer = FeatureBuffer(x, num_features, dtype)
        self.work = Workspace(self.buffer.rows, self.buffer.shape)
        self.running = RunningStatistics()
        self.memory_format = memory_format

    def norm(self, module: nn.BatchNorm2d) -> tuple[Norm, Affine]:
        """Let a norm layer read the first c channels, and note the change of its running statistics.

        Returns:
            The layer as it is now, and what it does to the buffer's channels.
        """
        statistics = self.buffer.statistics
        self.running.note(module, statistics.mean, statistics.unbiased)
        norm = Norm.of(module)
        return norm, norm.over_buffer(statistics, self.work.num_rows).affine

    def draw_dropout(self, drop_rate: float, num_columns: int, *, training: bool) -> Dropout:
        """Draw the mask (R, num_columns) of a module: as in the plain network, in the order in which modules run."""
        if not (drop_rate and training):
            return NO_DROPOUT
        return Dropout.draw(drop_rate, self.work.rows, self.work.shape, num_columns, self.memory_format)

    def append_convolution(self, activated: Callable[[slice], Tensor], weight: Tensor, dropout: Dropout) -> None:
        """Compute a 3x3 convolution with dropout, and append the result to the buffer.

        Args:
            activated: Returns the input of the convolution for a chunk of rows, (r, b).
            weight: (k, b, 3, 3), of any dtype.
            dropout: Dropout of the result.
        """
        rows, weight = self.work.rows, weight.to(self.work.rows.dtype)
        new = rows.new_empty(self.work.num_rows, weight.shape[0])
        for images, chunk in self.work.chunks_of_images(max(weight.shape[:2])):
            x = as_nchw(activated(chunk), self.work.shape_of(images))
            new[chunk] = dropout.apply(as_rows(F.conv2d(x, weight, padding=1)), chunk)
        self.buffer.append(new)


class BlockBackward:
    """The backward pass of a dense block, whose parts run in reverse order.

    Args:
        rows: The rows of the feature buffer (R, C).
        statistics: The statistics of its channels.
        shape: (N, H, W).

    Attributes:
        gradients: Gradients of all channels. A layer takes those of its own channels out, and adds those of its inputs.
        work: Scratch memory.
    """

    def __init__(self, rows: Tensor, statistics: Statistics, shape: Shape):
        self.statistics = statistics
        self.gradients = GradientBuffer(rows, statistics)
        self.work = Workspace(rows, shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in."""
        return self.work.rows.dtype

    def norm(self, norm: Norm) -> BufferNorm:
        """Combine a norm with the statistics of the buffer once more, as in the forward pass."""
        return norm.over_buffer(self.statistics, self.work.num_rows)
