"""Dense layers over a feature buffer, with a bottleneck and without: forward and backward.

A plain layer keeps nothing of its own for the backward pass except the mask of its dropout, because its whole input is
in the buffer. Nothing is as large as a whole batch except the channels that it makes.

A bottleneck z, the result of a 1x1 convolution, has only one reader. The norm after it needs mean and variance over the
whole batch; before and after it everything goes in chunks. Dropout of the bottleneck acts before that norm: where z is
kept, it is kept with values dropped, and where it is computed again, the same values are dropped again. For that a mask
(R, b) is kept for each layer, a byte for each value: a quarter of z itself in 32 bits, and in a block of m layers
together about as much as m / 4 bottlenecks.

R rows, N images, H x W pixels; c channels that a layer reads, b of its bottleneck, k that it makes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..layers import DenseLayer, PlainLayer
from .dropout import Dropout
from .fused_layer import FusedLayerPass
from .kernels.choice import plan_for
from .norm_relu import Activation, NormRelu
from .norms import ChannelNorm
from .operations import add_up
from .parameters import DenseLayerParameters, PlainLayerParameters
from .passes import BlockBackward, BlockForward
from .rows import FreshMemory, Gathered, as_nchw, as_rows, convolution_backward, pointwise, pointwise_backward
from .workspace import Workspace


def forward_layer(layer: DenseLayer | PlainLayer, block: BlockForward, *, keeps_bottleneck: bool) -> "LayerPass":
    """Run a layer of either kind; `keeps_bottleneck` has no meaning for a plain one."""
    if isinstance(layer, PlainLayer):
        return PlainLayerPass.forward(layer, block)
    plan = plan_for(block.work.rows, layer.bottleneck_features, layer.growth_rate)
    if plan is not None:
        return FusedLayerPass.forward(layer, block, plan, keeps_bottleneck=keeps_bottleneck)
    return DenseLayerPass.forward(layer, block, keeps_bottleneck=keeps_bottleneck)


@dataclass(frozen=True)
class PlainLayerPass:
    """All that the backward pass needs of a `PlainLayer`.

    Attributes:
        norm: The norm before the convolution.
        weight: (k, c, 3, 3), as `Workspace.cast` makes it.
        dropout: Dropout of the new channels (R, k).
    """

    norm: ChannelNorm
    weight: Tensor
    dropout: Dropout

    @classmethod
    def forward(cls, layer: PlainLayer, block: BlockForward) -> "PlainLayerPass":
        """Let a layer read the buffer and append its channels."""
        norm, weight = block.norm(layer.norm1), block.work.cast(layer.conv1.weight)
        x, norm_relu = block.work.rows[:, : len(norm.mean)], block.work.norm_relu(norm)
        dropout = block.draw_dropout(layer.drop_rate, len(weight), training=layer.training)
        block.append_convolution(lambda chunk: norm_relu.forward(x[chunk]), weight, dropout)
        return cls(norm, weight, dropout)

    def backward(self, block: BlockBackward) -> PlainLayerParameters:
        """Take the gradient of the layer's channels out, and add that of its inputs."""
        num_new, num_inputs, work, weight = len(self.weight), len(self.norm.mean), block.work, self.weight
        x, g, norm_relu = work.rows[:, :num_inputs], block.gradients.rows[:, :num_inputs], work.norm_relu(self.norm)
        grad_of_new = block.gradients.take(slice(num_inputs, num_inputs + num_new))

        def backward_chunk(images: slice, chunk: slice) -> Tensor:
            shape = work.shape_of(images)
            grad_new, inputs = grad_of_new(chunk, self.dropout.of(chunk)), norm_relu.again(x[chunk])
            grad_activated, grad_weight = convolution_backward(
                as_nchw(grad_new, shape), as_nchw(inputs.activated, shape), weight, padding=1
            )
            norm_relu.backward_into(g[chunk], as_rows(grad_activated), inputs)
            return grad_weight

        chunks = work.chunks_of_images(max(num_new, num_inputs))
        grad_weight = add_up((backward_chunk(*slices) for slices in chunks), self.norm.mean.dtype)
        norm_bias, norm_weight = block.gradients.close(norm_relu)
        return PlainLayerParameters(norm_weight, norm_bias, grad_weight[:, :num_inputs])


@dataclass(frozen=True)
class DenseLayerPass:
    """All that the backward pass needs of a `DenseLayer`.

    Attributes:
        norm1: The norm before the 1x1 convolution.
        weight1: (b, c, 1, 1), as `Workspace.cast` makes it.
        bottleneck_dropout: Dropout of the bottleneck (R, b).
        bottleneck: z (R, b); None if it is to be computed again.
        norm2: The norm before the 3x3 convolution.
        weight2: (k, b, 3, 3), as `Workspace.cast` makes it.
        dropout: Dropout of the new channels (R, k).
    """

    norm1: ChannelNorm
    weight1: Tensor
    bottleneck_dropout: Dropout
    bottleneck: Tensor | None
    norm2: ChannelNorm
    weight2: Tensor
    dropout: Dropout

    @property
    def num_inputs(self) -> int:
        """Channels c that the layer reads."""
        return len(self.norm1.mean)

    @property
    def num_bottleneck(self) -> int:
        """Channels b of the bottleneck."""
        return len(self.norm2.mean)

    @classmethod
    def forward(cls, layer: DenseLayer, block: BlockForward, *, keeps_bottleneck: bool) -> "DenseLayerPass":
        """Let a layer read the buffer and append its channels.

        Args:
            layer: The layer.
            block: The block's forward pass.
            keeps_bottleneck: Keep the bottleneck for the backward pass, instead of computing it again.
        """
        work, norm1 = block.work, block.norm(layer.norm1)
        weight1, weight2 = work.cast(layer.conv1.weight), work.cast(layer.conv2.weight)
        bottleneck_dropout = block.draw_dropout(layer.bottleneck_drop_rate, len(weight1), training=layer.training)
        gathered = Gathered(
            work.num_rows, FreshMemory(work.rows, work.rows.dtype) if keeps_bottleneck else work.bottleneck
        )
        x, norm_relu, moments = work.rows[:, : len(norm1.mean)], work.norm_relu(norm1), work.moments()
        for chunk in work.chunks_of_rows(max(weight1.shape[:2])):
            bottleneck = pointwise(norm_relu.forward(x[chunk]), weight1)
            moments.add(bottleneck, bottleneck_dropout.of(chunk), out=gathered.place_of(chunk, bottleneck))
        z = gathered.rows
        norm2 = block.norm_of_bottleneck(layer.norm2, moments.result(layer.norm2.eps))
        norm_relu = work.norm_relu_of_bottleneck(norm2)
        dropout = block.draw_dropout(layer.drop_rate, len(weight2), training=layer.training)
        block.append_convolution(lambda chunk: norm_relu.forward(z[chunk]), weight2, dropout)
        return cls(norm1, weight1, bottleneck_dropout, z if keeps_bottleneck else None, norm2, weight2, dropout)

    def backward(self, block: BlockBackward) -> DenseLayerParameters:
        """Take the gradient of the layer's channels out, and add that of its inputs."""
        norm_relu = block.work.norm_relu(self.norm1)
        at_bottleneck, conv2_weight = self._backward_to_bottleneck(block, norm_relu)
        norm1_bias, norm1_weight, conv1_weight = self._backward_to_inputs(block, norm_relu, at_bottleneck)
        norm2_bias, norm2_weight = at_bottleneck.total, at_bottleneck.product
        return DenseLayerParameters(norm1_weight, norm1_bias, conv1_weight, norm2_weight, norm2_bias, conv2_weight)

    def _backward_to_bottleneck(self, block: BlockBackward, norm_relu1: NormRelu) -> tuple["AtBottleneck", Tensor]:
        """Go back through the 3x3 convolution and the second ReLU.

        Args:
            block: The block's backward pass.
            norm_relu1: The first norm and ReLU, to compute the bottleneck again.

        Returns:
            All that the rest of the backward pass needs of the bottleneck, and the gradient of the weight (k, b, 3, 3).
        """
        work, weight2, norm_relu2 = block.work, self.weight2, block.work.norm_relu_of_bottleneck(self.norm2)
        grad_of_new = block.gradients.take(slice(self.num_inputs, self.num_inputs + len(weight2)))
        z, g = Gathered(work.num_rows, work.bottleneck), Gathered(work.num_rows, work.bottleneck_grad)
        activation = None

        def backward_chunk(images: slice, chunk: slice) -> Tensor:
            nonlocal activation
            shape = work.shape_of(images)
            if self.bottleneck is None:
                rows, activation = self._bottleneck_again(chunk, work, norm_relu1)
                rows = rows if work.is_small else z.put(chunk, rows)
            else:
                rows = self.bottleneck[chunk]
            grad_new, inputs = grad_of_new(chunk, self.dropout.of(chunk)), norm_relu2.again(rows)
            grad_activated, grad_weight = convolution_backward(
                as_nchw(grad_new, shape), as_nchw(inputs.activated, shape), weight2, padding=1
            )
            g.put(chunk, norm_relu2.backward(as_rows(grad_activated), inputs))
            return grad_weight

        chunks = work.chunks_of_images(work.columns_for_bottleneck(self.num_bottleneck, self.num_inputs))
        grad_weight = add_up((backward_chunk(*slices) for slices in chunks), self.norm2.mean.dtype)
        bottleneck = self.bottleneck if self.bottleneck is not None or work.is_small else z.rows
        return AtBottleneck(bottleneck, g.rows, *norm_relu2.sums(), activation), grad_weight[:, : self.num_bottleneck]

    def _backward_to_inputs(
        self, block: BlockBackward, norm_relu: NormRelu, at_bottleneck: "AtBottleneck"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go back through the second norm, the 1x1 convolution and the first ReLU and norm.

        Args:
            block: The block's backward pass.
            norm_relu: The first norm and ReLU.
            at_bottleneck: All that is needed of the bottleneck.

        Returns:
            dbeta (c,), dgamma (c,), and the gradient of the weight (b, c, 1, 1).
        """
        work, weight1 = block.work, self.weight1
        x, gradients = (rows[:, : self.num_inputs] for rows in (work.rows, block.gradients.rows))
        z, g, total, product, activation = at_bottleneck
        grad_of_z = work.bottleneck_gradient(self.norm2, total, product)

        def backward_chunk(chunk: slice) -> Tensor:
            inputs, dropout = activation or norm_relu.again(x[chunk]), self.bottleneck_dropout.of(chunk)
            z_of_chunk = dropout.apply(pointwise(inputs.activated, weight1)) if z is None else z[chunk]
            grad_z = grad_of_z(g[chunk], z_of_chunk, dropout)
            del z_of_chunk  # of which nothing is needed while the gradients exist
            grad_activated, grad_weight = pointwise_backward(grad_z, inputs.activated, weight1)
            norm_relu.backward_into(gradients[chunk], grad_activated, inputs)
            return grad_weight

        chunks = work.chunks_of_rows(max(self.num_bottleneck, self.num_inputs))
        grad_weight = add_up(map(backward_chunk, chunks), self.norm1.mean.dtype)
        norm1_bias, norm1_weight = block.gradients.close(norm_relu)
        return norm1_bias, norm1_weight, grad_weight[:, : self.num_inputs]

    def _bottleneck_again(self, rows: slice, work: Workspace, norm_relu: NormRelu) -> tuple[Tensor, Activation | None]:
        """Compute some rows of the bottleneck again, (r, b); also return its input if it is that of all rows."""
        x = work.rows[:, : self.num_inputs]
        gathered = Gathered(rows.stop - rows.start, FreshMemory(work.rows, work.rows.dtype))
        inputs = None
        for chunk in work.chunks_of_rows(max(self.num_bottleneck, self.num_inputs), rows):
            inputs = norm_relu.again(x[chunk]) if len(x[chunk]) == work.num_rows else None
            activated = inputs.activated if inputs else norm_relu.forward(x[chunk])
            z = self.bottleneck_dropout.of(chunk).apply(pointwise(activated, self.weight1))
            gathered.put(slice(chunk.start - rows.start, chunk.stop - rows.start), z)
        return gathered.rows, inputs


class AtBottleneck(NamedTuple):
    """All that the backward pass of a `DenseLayer` has at its bottleneck.

    Attributes:
        bottleneck: z (R, b); None if it does not exist as a whole.
        grad: g, the gradient of the second ReLU's input (R, b), which may be overwritten.
        total: dbeta of the second norm (b,).
        product: dgamma of the second norm (b,).
        inputs: Norm and ReLU of the inputs, if they have just been computed for all rows.
    """

    bottleneck: Tensor | None
    grad: Tensor
    total: Tensor
    product: Tensor
    inputs: Activation | None


LayerPass = DenseLayerPass | FusedLayerPass | PlainLayerPass
