"""Dense layers over a feature buffer, with a bottleneck and without: forward and backward.

A plain layer keeps nothing of its own for the backward pass except the mask of its dropout, because its whole input is
in the buffer. Nothing is as large as a whole batch except the channels that it makes.

A bottleneck z, the result of a 1x1 convolution, has only one reader, and is not stored normalised as the channels of
the buffer are. The norm after it needs mean and variance over the whole batch; before and after it everything goes in
chunks. Dropout of the bottleneck acts before that norm: where z is kept, it is kept with values dropped, and where it
is computed again, the same values are dropped again. For that a mask (R, b) is kept for each layer, a byte for each
value: a quarter of z itself in 32 bits, and in a block of m layers together about as much as m / 4 bottlenecks.

R rows, N images, H x W pixels; c channels that a layer reads, b of its bottleneck, k that it makes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..layers import DenseLayer, PlainLayer
from .dropout import Dropout
from .feature_buffer import Workspace
from .norms import BottleneckNorm, BufferNorm, Norm
from .operations import Affine, NormGradient, add_chunks, affine_relu, norm_backward, relu_backward
from .passes import BlockBackward, BlockForward
from .rows import as_nchw, as_rows, chunks_of_rows, convolution_backward, pointwise, pointwise_backward


class PlainLayerParameters(NamedTuple):
    """The parameters of a plain layer, or their gradients: (c,), (c,) and (k, c, 3, 3)."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    conv1_weight: Tensor


class DenseLayerParameters(NamedTuple):
    """The parameters of a dense layer, or their gradients: (c,), (c,), (b, c, 1, 1), (b,), (b,) and (k, b, 3, 3)."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    conv1_weight: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    conv2_weight: Tensor


def parameters_of_layer(layer: DenseLayer | PlainLayer) -> DenseLayerParameters | PlainLayerParameters:
    """Return the parameters of a layer in the order in which `backward` returns their gradients."""
    norm1, conv1 = layer.norm1, layer.conv1
    if isinstance(layer, PlainLayer):
        return PlainLayerParameters(norm1.weight, norm1.bias, conv1.weight)
    norm2, conv2 = layer.norm2, layer.conv2
    return DenseLayerParameters(norm1.weight, norm1.bias, conv1.weight, norm2.weight, norm2.bias, conv2.weight)


def forward_layer(
    layer: DenseLayer | PlainLayer, block: BlockForward, *, keeps_bottleneck: bool
) -> "DenseLayerPass | PlainLayerPass":
    """Run a layer of either kind; `keeps_bottleneck` has no meaning for a plain one."""
    if isinstance(layer, PlainLayer):
        return PlainLayerPass.forward(layer, block)
    return DenseLayerPass.forward(layer, block, keeps_bottleneck=keeps_bottleneck)


@dataclass(frozen=True)
class PlainLayerPass:
    """All that the backward pass needs of a `PlainLayer`.

    Attributes:
        norm: The norm before the convolution.
        weight: (k, c, 3, 3).
        dropout: Dropout of the new channels (R, k).
    """

    norm: Norm
    weight: Tensor
    dropout: Dropout

    @classmethod
    def forward(cls, layer: PlainLayer, block: BlockForward) -> "PlainLayerPass":
        """Let a layer read the buffer and append its channels."""
        norm, affine = block.norm(layer.norm1)
        weight = layer.conv1.weight
        dropout = block.draw_dropout(layer.drop_rate, len(weight), training=layer.training)
        block.append_convolution(lambda chunk: block.work.activated(chunk, affine), weight, dropout)
        return cls(norm, weight, dropout)

    def backward(self, block: BlockBackward) -> PlainLayerParameters:
        """Take the gradient of the layer's channels out, and add that of its inputs."""
        num_new, num_inputs, *_ = self.weight.shape
        work, weight = block.work, self.weight.to(block.dtype)
        norm = block.norm(self.norm)
        grad_of_new = block.gradients.take(slice(num_inputs, num_inputs + num_new))

        def backward_chunk(images: slice, chunk: slice) -> tuple[Tensor, ...]:
            shape = work.shape_of(images)
            grad_new = self.dropout.apply(grad_of_new(chunk), chunk)
            xhat, activated = work.read(chunk, norm.affine)
            grad_activated, grad_weight = convolution_backward(
                as_nchw(grad_new, shape), as_nchw(activated, shape), weight, padding=1
            )
            g = relu_backward(as_rows(grad_activated), activated)
            return *block.gradients.add(chunk, g, xhat, norm.affine), grad_weight

        chunks = (backward_chunk(*slices) for slices in work.chunks_of_images(max(num_new, num_inputs)))
        return PlainLayerParameters(*block.gradients.close(norm, chunks))


@dataclass(frozen=True)
class DenseLayerPass:
    """All that the backward pass needs of a `DenseLayer`.

    Attributes:
        norm1: The norm before the 1x1 convolution.
        weight1: (b, c, 1, 1).
        bottleneck_dropout: Dropout of the bottleneck (R, b).
        bottleneck: z (R, b); None if it is to be computed again.
        norm2: The norm before the 3x3 convolution.
        weight2: (k, b, 3, 3).
        dropout: Dropout of the new channels (R, k).
    """

    norm1: Norm
    weight1: Tensor
    bottleneck_dropout: Dropout
    bottleneck: Tensor | None
    norm2: BottleneckNorm
    weight2: Tensor
    dropout: Dropout

    @classmethod
    def forward(cls, layer: DenseLayer, block: BlockForward, *, keeps_bottleneck: bool) -> "DenseLayerPass":
        """Let a layer read the buffer and append its channels.

        Args:
            layer: The layer.
            block: The block's forward pass.
            keeps_bottleneck: Keep the bottleneck for the backward pass, instead of computing it again.
        """
        work, weight1, weight2 = block.work, layer.conv1.weight, layer.conv2.weight
        norm1, affine1 = block.norm(layer.norm1)
        bottleneck_dropout = block.draw_dropout(layer.bottleneck_drop_rate, len(weight1), training=layer.training)
        size = work.num_rows, len(weight1)
        z = work.rows.new_empty(size) if keeps_bottleneck else work.bottleneck.shaped(*size)
        _fill_bottleneck(z, work, affine1, weight1.to(z.dtype), bottleneck_dropout)
        norm2 = BottleneckNorm.of(layer.norm2, z, block.running)
        affine2 = norm2.affine
        dropout = block.draw_dropout(layer.drop_rate, len(weight2), training=layer.training)
        block.append_convolution(lambda chunk: affine_relu(z[chunk], affine2, work.bottleneck_chunk), weight2, dropout)
        return cls(norm1, weight1, bottleneck_dropout, z if keeps_bottleneck else None, norm2, weight2, dropout)

    def backward(self, block: BlockBackward) -> DenseLayerParameters:
        """Take the gradient of the layer's channels out, and add that of its inputs."""
        work, size = block.work, (block.work.num_rows, len(self.weight1))
        norm1, weight1 = block.norm(self.norm1), self.weight1.to(block.dtype)
        z = work.bottleneck.shaped(*size) if self.bottleneck is None else self.bottleneck
        g = work.bottleneck_grad.shaped(*size)
        norm2_bias, norm2_weight, conv2_weight = self._backward_to_bottleneck(block, norm1.affine, weight1, z, g)
        gradient = self.norm2.gradient(norm2_bias, norm2_weight, work.num_rows)
        norm1_weight, norm1_bias, conv1_weight = self._backward_to_inputs(block, norm1, weight1, z, g, gradient)
        return DenseLayerParameters(norm1_weight, norm1_bias, conv1_weight, norm2_weight, norm2_bias, conv2_weight)

    def _backward_to_bottleneck(
        self, block: BlockBackward, affine1: Affine, weight1: Tensor, z: Tensor, g: Tensor
    ) -> list[Tensor]:
        """Go back through the 3x3 convolution and the second ReLU.

        Args:
            block: The block's backward pass.
            affine1: The first norm, to compute the bottleneck again if it was not kept.
            weight1: For the same, in the dtype of the rows.
            z: The bottleneck (R, b), or memory for it.
            g: Memory for the gradient of the ReLU's input (R, b).

        Returns:
            dbeta (b,), dgamma (b,), and the gradient of the weight (k, b, 3, 3).
        """
        work, weight2, affine2 = block.work, self.weight2.to(block.dtype), self.norm2.affine
        num_inputs = self.weight1.shape[1]
        grad_of_new = block.gradients.take(slice(num_inputs, num_inputs + len(weight2)))

        def backward_chunk(images: slice, chunk: slice) -> tuple[Tensor, ...]:
            if self.bottleneck is None:
                _fill_bottleneck(z, work, affine1, weight1, self.bottleneck_dropout, chunk)
            shape = work.shape_of(images)
            grad_new = self.dropout.apply(grad_of_new(chunk), chunk)
            activated = affine_relu(z[chunk], affine2, work.bottleneck_chunk)
            grad_activated, grad_weight = convolution_backward(
                as_nchw(grad_new, shape), as_nchw(activated, shape), weight2, padding=1
            )
            g_of_chunk = relu_backward(as_rows(grad_activated), activated)
            g[chunk] = g_of_chunk
            return *self.norm2.sums(g_of_chunk, z[chunk]), grad_weight

        chunks = (backward_chunk(*slices) for slices in work.chunks_of_images(max(self.weight1.shape[:2])))
        return add_chunks(chunks, affine1.scale.dtype)

    def _backward_to_inputs(
        self, block: BlockBackward, norm1: BufferNorm, weight1: Tensor, z: Tensor, g: Tensor, gradient: NormGradient
    ) -> tuple[Tensor, ...]:
        """Go back through the second norm, the 1x1 convolution and the first ReLU and norm.

        Args:
            block: The block's backward pass.
            norm1: The first norm.
            weight1: (b, c, 1, 1), in the dtype of the rows.
            z: The bottleneck (R, b).
            g: The gradient of the second ReLU's input (R, b).
            gradient: The gradient of z as a function of g and z.

        Returns:
            dgamma (c,), dbeta (c,), and the gradient of the weight (b, c, 1, 1).
        """
        work = block.work

        def backward_chunk(chunk: slice) -> tuple[Tensor, ...]:
            grad_z = norm_backward(g[chunk], z[chunk], gradient, work.bottleneck_chunk)
            grad_z = self.bottleneck_dropout.apply(grad_z, chunk)
            xhat, activated = work.read(chunk, norm1.affine)
            grad_activated, grad_weight = pointwise_backward(grad_z, activated, weight1)
            grad = relu_backward(grad_activated, activated)
            return *block.gradients.add(chunk, grad, xhat, norm1.affine), grad_weight

        chunks = (backward_chunk(chunk) for chunk in chunks_of_rows(work.rows, max(weight1.shape[:2])))
        return block.gradients.close(norm1, chunks)


def _fill_bottleneck(
    z: Tensor, work: Workspace, affine: Affine, weight: Tensor, dropout: Dropout, within: slice | None = None
) -> None:
    """Write norm, ReLU, 1x1 convolution and dropout of the first c channels to z (R, b).

    Args:
        z: The bottleneck.
        work: Holds the rows to read.
        affine: The norm.
        weight: (b, c, 1, 1), in the dtype of the rows.
        dropout: Dropout of the bottleneck.
        within: Fill these rows only.
    """
    for chunk in chunks_of_rows(work.rows, max(weight.shape[:2]), within):
        z[chunk] = dropout.apply(pointwise(work.activated(chunk, affine), weight), chunk)
