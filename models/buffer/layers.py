"""A dense layer that reads a feature buffer: norm, ReLU, 1x1, norm, ReLU, 3x3, forward and backward.

Its bottleneck z, which the 1x1 convolution makes, has one reader, and is not stored normalised as the block's maps are.
The norm after it needs mean and variance of the whole batch; around it everything goes in chunks.

Dropout of the bottleneck acts before that norm. z is what the norm reads: where it is kept it is kept with values
dropped, and where it is computed again the same values are dropped again. For that a mask (R, b) is kept for each
layer, a byte for each value: a quarter of what z itself would take in 32 bits, and in a block of m layers together
about as much as m / 4 of them.

R rows, N images, H x W pixels; c channels that the layer reads, b of its bottleneck, k that it makes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .affine import NormGradient, activate
from .dropout import Dropout
from .feature_buffer import GradientBuffer, Statistics
from .norms import Norm, Normalisation
from .reductions import totals
from .rows import (
    as_maps,
    as_rows,
    chunks_of_images,
    chunks_of_rows,
    convolution_backward,
    pointwise_backward,
    zero_where_relu_was,
)
from .stage_forward import StageForward
from .workspace import Workspace


@dataclass(frozen=True)
class DenseLayerPass:
    """What the backward pass needs of a `DenseLayer`.

    Attributes:
        norm1: Before the 1x1 convolution.
        norm2: Before the 3x3 convolution.
        parameters: As `parameters_of` orders them.
        inner: Mean and invstd (b,) of the bottleneck, and the bottleneck (R, b) itself if it is kept.
        inner_dropout: Of the bottleneck.
        dropout: Of the new maps (R, k).
    """

    norm1: Norm
    norm2: Norm
    parameters: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]
    inner_dropout: Dropout
    dropout: Dropout

    @staticmethod
    def parameters_of(layer: nn.Module) -> tuple[Tensor, ...]:
        """Those of a layer, in the order of use: (c,), (c,), (b, c, 1, 1), (b,), (b,), (k, b, 3, 3)."""
        norm1, norm2 = layer.norm1, layer.norm2
        return norm1.weight, norm1.bias, layer.conv1.weight, norm2.weight, norm2.bias, layer.conv2.weight

    @classmethod
    def run(
        cls, module: nn.Module, parameters: tuple[Tensor, ...], forward: StageForward, *, keeps_bottleneck: bool
    ) -> "DenseLayerPass":
        """Let a `DenseLayer` read the buffer and write what it makes.

        Args:
            module: Its settings are used.
            parameters: As `parameters_of` orders them.
            forward: Of the block.
            keeps_bottleneck: Whether the backward pass finds the bottleneck, or computes it again.
        """
        work, is_training = forward.work, module.training
        gamma1, beta1, weight1, gamma2, beta2, weight2 = parameters
        norm1, affine = forward.read(module.norm1, gamma1, beta1)
        inner_dropout = forward.draw_dropout(module.bottleneck_drop_rate, len(weight1), training=is_training)
        size = work.num_rows, len(weight1)
        z = work.rows.new_empty(*size) if keeps_bottleneck else work.inner.shaped(*size)
        work.fill_inner(z, affine, weight1.to(z.dtype), inner_dropout)
        norm2 = Norm.of(module.norm2)
        normalisation = norm2.normalisation(z, module.norm2, forward.running)
        inner_affine = normalisation.affine(gamma2, beta2)
        dropout = forward.draw_dropout(module.drop_rate, len(weight2), training=is_training)
        forward.append(lambda chunk: activate(z[chunk], inner_affine, work.inner_chunk), weight2, dropout)
        inner = (normalisation.mean, normalisation.invstd, *((z,) if keeps_bottleneck else ()))
        return cls(norm1, norm2, parameters, inner, inner_dropout, dropout)

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        of_norms = self.norm1.running, self.norm2.running
        return *of_norms, self.parameters, self.inner, self.inner_dropout.mask, self.dropout.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "DenseLayerPass":
        """The same with the next groups in place of its own."""
        norm1, norm2 = self.norm1.with_running(next(groups)), self.norm2.with_running(next(groups))
        parameters, inner = next(groups), next(groups)
        dropouts = self.inner_dropout.with_tensors(groups), self.dropout.with_tensors(groups)
        return DenseLayerPass(norm1, norm2, parameters, inner, *dropouts)

    def normalisation(self) -> Normalisation:
        """What norm2 normalised the bottleneck with."""
        mean, invstd, *_ = self.inner
        return Normalisation(mean, invstd, not self.norm2.running)

    def keeps_bottleneck(self) -> bool:
        """Whether the bottleneck is there."""
        return len(self.inner) > 2

    def bottleneck(self) -> Tensor:
        """The bottleneck (R, b), if it is kept."""
        return self.inner[2]

    def backward(self, gradients: GradientBuffer, statistics: Statistics, work: Workspace) -> tuple[Tensor, ...]:
        """Take the gradient of the new maps, add to that of what was read; return those of all parameters."""
        return DenseLayerBackward(self, gradients, statistics, work).run()


class DenseLayerBackward:
    """The backward pass of a dense layer.

    Args:
        layer: What the forward pass noted.
        gradients: Of the block. That of the layer's new maps is taken, that of what it has read grows.
        statistics: Of the block's maps.
        work: Of the block.
    """

    def __init__(self, layer: DenseLayerPass, gradients: GradientBuffer, statistics: Statistics, work: Workspace):
        self.layer = layer
        self.gradients = gradients
        self.work = work
        gamma1, beta1, weight1, self.gamma2, beta2, weight2 = layer.parameters
        self.num_inner, self.num_inputs, *_ = weight1.shape
        self.weight1, self.weight2 = weight1.to(work.rows.dtype), weight2.to(work.rows.dtype)
        self.reading = layer.norm1.reading(gamma1, beta1, statistics, work.num_rows)
        self.affine = self.reading.affine
        self.normalisation = layer.normalisation()
        self.inner_affine = self.normalisation.affine(self.gamma2, beta2)
        self.grad_of_new = gradients.take(slice(self.num_inputs, self.num_inputs + weight2.shape[0]))
        size = work.num_rows, self.num_inner
        self.z = layer.bottleneck() if layer.keeps_bottleneck() else work.inner.shaped(*size)
        self.grad = work.inner_grad.shaped(*size)

    def run(self) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters."""
        num_columns = max(self.num_inputs, self.num_inner)
        chunks = chunks_of_images(self.work.rows, self.work.shape, num_columns)
        shares = (self._after_bottleneck(images, chunk) for images, chunk in chunks)
        grad_beta2, grad_gamma2, grad_weight2 = totals(shares, self.affine.scale.dtype)
        through = self.normalisation.gradient(self.gamma2, grad_beta2, grad_gamma2, self.work.num_rows)
        chunks = chunks_of_rows(self.work.rows, num_columns)
        shares = (self._before_bottleneck(chunk, through) for chunk in chunks)
        return *self.gradients.close(self.reading, shares), grad_gamma2, grad_beta2, grad_weight2

    def _after_bottleneck(self, images: slice, chunk: slice) -> tuple[Tensor, ...]:
        """Write g of the bottleneck's ReLU into a chunk of `grad`, and z into one of `z` if it is not kept.

        Returns:
            The chunk's share of the gradients of beta, gamma and weight.
        """
        if not self.layer.keeps_bottleneck():
            self.work.fill_inner(self.z, self.affine, self.weight1, self.layer.inner_dropout, chunk)
        grad_new = self.layer.dropout.of(self.grad_of_new(chunk), chunk)
        activated = activate(self.z[chunk], self.inner_affine, self.work.inner_chunk)
        shape = self.work.shape_of(images)
        maps = as_maps(grad_new, shape), as_maps(activated, shape)
        grad_activated, grad_weight = convolution_backward(*maps, self.weight2, padding=1)
        g = zero_where_relu_was(as_rows(grad_activated), activated)
        self.grad[chunk] = g
        return *self.normalisation.shares(g, self.z[chunk]), grad_weight

    def _before_bottleneck(self, chunk: slice, through: NormGradient) -> tuple[Tensor, ...]:
        """Go back from a chunk of g and z through the norm, dropout and the 1x1 convolution to what the layer has read.

        Returns:
            The chunk's share of the gradients of beta, gamma and weight.
        """
        grad_z = through.of(self.grad[chunk], self.z[chunk], self.work.inner_chunk)
        grad_z = self.layer.inner_dropout.of(grad_z, chunk)
        xhat, activated = self.work.read(chunk, self.affine)
        grad_activated, grad_weight = pointwise_backward(grad_z, activated, self.weight1)
        g = zero_where_relu_was(grad_activated, activated)
        return *self.gradients.add(chunk, g, xhat, self.affine), grad_weight
