"""Dense layers with a bottleneck whose convolutions are kernels too, with all that comes before and after them.

    forward   z, the bottleneck, by norm, ReLU, 1x1 convolution and dropout, with its moments; in the same way the new
              channels, which are written into the buffer
    backward  z again, if it was not kept, in the kernel that makes its gradient; then gradients of weights, and that of
              the inputs, which is added to the buffer of gradients

Nothing is as large as what a layer reads, so that there are no chunks. `layers` has the same for convolutions of a
library; `kernels.table` says which layers are fused.

R rows; c channels that a layer reads, b of its bottleneck, k that it makes.
"""

from dataclasses import dataclass

from torch import Tensor

from ..layers import DenseLayer
from .dropout import Dropout
from .kernels.table import Plan
from .norms import EPS, ChannelNorm
from .parameters import DenseLayerParameters
from .passes import BlockBackward, BlockForward
from .rows import empty_buffer


@dataclass(frozen=True)
class FusedLayerPass:
    """All that the backward pass needs of a `DenseLayer` with fused products.

    Attributes:
        norm1: The norm before the 1x1 convolution.
        weight1: (b, c, 1, 1).
        bottleneck_dropout: Dropout of the bottleneck (R, b).
        bottleneck: z (R, b); None if it is to be computed again.
        norm2: The norm before the 3x3 convolution.
        weight2: (k, b, 3, 3).
        dropout: Dropout of the new channels (R, k).
        plan: How kernels divide the work.
    """

    norm1: ChannelNorm
    weight1: Tensor
    bottleneck_dropout: Dropout
    bottleneck: Tensor | None
    norm2: ChannelNorm
    weight2: Tensor
    dropout: Dropout
    plan: Plan

    @classmethod
    def forward(cls, layer: DenseLayer, block: BlockForward, plan: Plan, *, keeps_bottleneck: bool) -> "FusedLayerPass":
        """Let a layer read the buffer and append its channels.

        Args:
            layer: The layer.
            block: The block's forward pass.
            plan: How kernels divide the work.
            keeps_bottleneck: Keep the bottleneck for the backward pass, instead of computing it again.
        """
        from .kernels import products  # needs triton

        work, weight1, weight2 = block.work, layer.conv1.weight, layer.conv2.weight
        norm1 = block.norm(layer.norm1)
        dropout1 = block.draw_dropout(layer.bottleneck_drop_rate, len(weight1), training=layer.training)
        first = products.Convolution(norm1, weight1, dropout1)
        x, z = work.rows[:, : weight1.shape[1]], empty_buffer(work.rows, work.num_rows, len(weight1), work.rows.dtype)
        norm2 = block.norm_of_bottleneck(layer.norm2, products.bottleneck(x, first, plan, eps=layer.norm2.eps, out=z))
        dropout2 = block.draw_dropout(layer.drop_rate, len(weight2), training=layer.training)
        second = products.Convolution(norm2, weight2, dropout2)
        new, statistics = block.buffer.append(len(weight2))
        products.new_maps(z, second, work.shape, plan, eps=EPS, out=new, statistics=statistics)
        return cls(norm1, weight1, dropout1, z if keeps_bottleneck else None, norm2, weight2, dropout2, plan)

    def backward(self, block: BlockBackward) -> DenseLayerParameters:
        """Take the gradient of the layer's channels out, and add that of its inputs."""
        from .kernels import products  # needs triton

        work, gradients, num_inputs = block.work, block.gradients, self.weight1.shape[1]
        z, is_kept = self.bottleneck, self.bottleneck is not None
        if z is None:
            z = empty_buffer(work.rows, work.num_rows, len(self.weight1), work.rows.dtype)
        # It has the strides of z, which may have been saved as another copy than was made in the forward pass.
        grad_of_z = z.new_empty(work.num_rows, z.stride(0))[:, : z.shape[1]]
        new = slice(num_inputs, num_inputs + len(self.weight2))
        return products.backward(
            gradients.take(new, is_padded=True)(slice(None), self.dropout),
            products.Inputs(work.rows[:, :num_inputs], gradients.rows[:, :num_inputs], gradients.collected),
            products.Bottleneck(z, grad_of_z, is_kept),
            products.Convolution(self.norm1, self.weight1, self.bottleneck_dropout),
            products.Convolution(self.norm2, self.weight2),
            work.shape,
            self.plan,
        )
