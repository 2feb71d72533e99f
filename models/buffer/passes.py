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
from .feature_buffer import FeatureBuffer, GradientBuffer
from .kernels.choice import workspace_for
from .norms import EPS, ChannelNorm, RunningStatistics, Statistics
from .rows import Shape, as_nchw, as_rows


class BlockForward:
    """The forward pass of a dense block, whose parts run one after the other.

    Args:
        x: Input of the block (N, C0, H, W).
        num_features: Channels C of the whole block.
        dtype: The dtype to compute in.
        memory_format: The memory format of the plain network; which values dropout drops depends on it.
        is_small: See `Workspace`.

    Attributes:
        buffer: Holds the channels; layers append theirs.
        work: Operations on its rows.
        running: Notes how running statistics change.
    """

    def __init__(
        self, x: Tensor, num_features: int, dtype: torch.dtype, memory_format: torch.memory_format, *, is_small: bool
    ):
        self.buffer = FeatureBuffer(x, num_features, dtype, is_small=is_small)
        self.work = self.buffer.work
        self.running = RunningStatistics()
        self.memory_format = memory_format

    def norm(self, module: nn.BatchNorm2d) -> ChannelNorm:
        """Let a norm layer read the first c channels, and note the change of its running statistics."""
        statistics = self.buffer.statistics
        self.running.note(module, statistics.mean, statistics.unbiased)
        return ChannelNorm.over_buffer(module, statistics, self.work.num_rows)

    def norm_of_bottleneck(self, module: nn.BatchNorm2d, statistics: Statistics) -> ChannelNorm:
        """Let a norm layer read a bottleneck with these statistics, and note the change of its running ones."""
        norm = ChannelNorm.over_rows(module, statistics)
        if not norm.is_frozen:
            self.running.note(module, statistics.mean, statistics.unbiased)
        return norm

    def draw_dropout(self, drop_rate: float, num_columns: int, *, training: bool) -> Dropout:
        """Draw the mask (R, num_columns) of a module: as in the plain network, in the order in which modules run."""
        if not (drop_rate and training):
            return NO_DROPOUT
        return Dropout.draw(drop_rate, self.work.rows, self.work.shape, num_columns, self.memory_format)

    def append_convolution(self, activated: Callable[[slice], Tensor], weight: Tensor, dropout: Dropout) -> None:
        """Compute a 3x3 convolution with dropout, and append the result to the buffer.

        Args:
            activated: Returns the input of the convolution for a chunk of rows, (r, b).
            weight: (k, b, 3, 3), as `Workspace.cast` makes it.
            dropout: Dropout of the result.
        """
        rows, statistics = self.buffer.append(len(weight))
        moments = self.work.moments()
        for images, chunk in self.work.chunks_of_images(max(weight.shape[:2])):
            x = as_nchw(activated(chunk), self.work.shape_of(images))
            moments.add(as_rows(F.conv2d(x, weight, padding=1)), dropout.of(chunk), out=rows[chunk])
        moments.result(EPS, out=statistics)


class BlockBackward:
    """The backward pass of a dense block, whose parts run in reverse order.

    Args:
        rows: The rows of the feature buffer (R, C).
        statistics: The statistics of its channels.
        shape: (N, H, W).
        is_small: See `Workspace`.

    Attributes:
        work: Operations on the rows.
        gradients: Gradients of all channels. A layer takes those of its own channels out, and adds those of its inputs.
    """

    def __init__(self, rows: Tensor, statistics: Statistics, shape: Shape, *, is_small: bool):
        self.work = workspace_for(rows, shape, is_small=is_small, is_forward=False)
        self.gradients = GradientBuffer(self.work, statistics.mean)
