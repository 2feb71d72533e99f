"""A dense layer without a bottleneck that reads a feature buffer: norm, ReLU, 3x3, forward and backward.

All that it reads is in the buffer already. So it keeps nothing of its own but the mask of its dropout, and nothing is
as large as a whole batch but the maps that it makes.

N images, H x W pixels, R = N * H * W rows; c channels that the layer reads, k that it makes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .dropout import Dropout
from .feature_buffer import GradientBuffer, Statistics
from .norms import Norm
from .rows import as_maps, as_rows, chunks_of_images, convolution_backward, zero_where_relu_was
from .stage_forward import StageForward
from .workspace import Workspace


@dataclass(frozen=True)
class PlainLayerPass:
    """What the backward pass needs of a `PlainLayer`.

    Attributes:
        norm: Before the convolution.
        parameters: As `parameters_of` orders them.
        dropout: Of the new maps (R, k).
    """

    norm: Norm
    parameters: tuple[Tensor, ...]
    dropout: Dropout

    @staticmethod
    def parameters_of(layer: nn.Module) -> tuple[Tensor, ...]:
        """Those of a layer, in the order of use: (c,), (c,), (k, c, 3, 3)."""
        return layer.norm1.weight, layer.norm1.bias, layer.conv1.weight

    @classmethod
    def run(
        cls, module: nn.Module, parameters: tuple[Tensor, ...], forward: StageForward, *, keeps_bottleneck: bool
    ) -> "PlainLayerPass":
        """Let a `PlainLayer` read the buffer and write what it makes; there is no bottleneck to keep."""
        gamma, beta, weight = parameters
        norm, affine = forward.read(module.norm1, gamma, beta)
        dropout = forward.draw_dropout(module.drop_rate, len(weight), training=module.training)
        forward.append(lambda chunk: forward.work.activated(chunk, affine), weight, dropout)
        return cls(norm, parameters, dropout)

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm.running, self.parameters, self.dropout.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "PlainLayerPass":
        """The same with the next groups in place of its own."""
        return PlainLayerPass(self.norm.with_running(next(groups)), next(groups), self.dropout.with_tensors(groups))

    def backward(self, gradients: GradientBuffer, statistics: Statistics, work: Workspace) -> tuple[Tensor, ...]:
        """Take the gradient of the new maps, add to that of what was read; return those of all parameters."""
        gamma, beta, weight = self.parameters
        num_new, num_inputs, *_ = weight.shape
        weight = weight.to(work.rows.dtype)
        reading = self.norm.reading(gamma, beta, statistics, work.num_rows)
        grad_of_new = gradients.take(slice(num_inputs, num_inputs + num_new))

        def share(images: slice, chunk: slice) -> tuple[Tensor, ...]:
            shape = work.shape_of(images)
            grad_new = self.dropout.of(grad_of_new(chunk), chunk)
            xhat, activated = work.read(chunk, reading.affine)
            maps = as_maps(grad_new, shape), as_maps(activated, shape)
            grad_activated, grad_weight = convolution_backward(*maps, weight, padding=1)
            g = zero_where_relu_was(as_rows(grad_activated), activated)
            return *gradients.add(chunk, g, xhat, reading.affine), grad_weight

        chunks = chunks_of_images(work.rows, work.shape, max(num_new, num_inputs))
        return gradients.close(reading, (share(images, chunk) for images, chunk in chunks))
