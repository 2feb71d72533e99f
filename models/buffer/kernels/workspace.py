"""The operations of `Workspace` by kernels: each pass over rows is one, and the sums over rows that it makes possible.

Convolutions are those of the library. R rows, r of them in a chunk, c columns; n images of H x W pixels in a chunk.
"""

import sys
from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from ..dropout import Dropout
from ..norm_relu import Activation, NormRelu, Spread
from ..norms import ChannelNorm
from ..rows import ROW_MULTIPLE, FreshMemory, Shape
from ..workspace import Workspace
from . import backward, forward

LEAST_CHUNK_BYTES = 8 * 2**20  # not tuned: it was chosen without a GPU
ALIGNED = 8  # channels: libraries compute in 16 bits fast for multiples of these


class KernelWorkspace(Workspace):
    """Works on the rows of a feature buffer with kernels; see `Workspace`.

    Chunks are there to save memory alone: nothing stays in a cache from one pass to the next. The forward pass, far
    from the peak of a step, has a single chunk. The backward pass has the inputs of a layer and their gradient beside
    the buffers; its chunks are a quarter of a buffer, but not so small that launching kernels would take the time.
    """

    def __init__(self, rows: Tensor, shape: Shape, *, is_small: bool, is_forward: bool):
        super().__init__(rows, shape, is_small=is_small)
        least = LEAST_CHUNK_BYTES // rows.element_size()
        self.numbers_in_a_chunk = sys.maxsize if is_forward else max(least, rows.numel() // 4)
        self.bottleneck, self.bottleneck_grad = (FreshMemory(rows, rows.dtype) for _ in range(2))

    def chunks_for_transition(self, *, has_dropout: bool) -> Iterator[tuple[slice, slice]]:
        if has_dropout:
            return super().chunks_for_transition(has_dropout=has_dropout)
        return iter([(slice(0, self.shape[0]), slice(0, self.num_rows))])

    def columns_for_bottleneck(self, num_bottleneck: int, num_inputs: int) -> int:
        return num_bottleneck

    def norm_relu(self, norm: ChannelNorm) -> "KernelNormRelu":
        return KernelNormRelu(norm)

    def norm_relu_of_bottleneck(self, norm: ChannelNorm) -> "KernelNormRelu":
        return KernelNormRelu(norm)

    def moments(self) -> forward.Moments:
        return forward.Moments()

    def cast(self, weight: Tensor) -> Tensor:
        weight = super().cast(weight)
        missing = -weight.shape[1] % ALIGNED if weight.dtype.itemsize == 2 else 0
        return F.pad(weight, (0, 0, 0, 0, 0, missing)) if missing else weight

    def bottleneck_gradient(
        self, norm: ChannelNorm, total: Tensor, product: Tensor
    ) -> Callable[[Tensor, Tensor, Dropout], Tensor]:
        sums = None if norm.is_frozen else (total, product)
        return lambda g, z, dropout: backward.norm_backward(g, z, norm, sums, self.num_rows, g, dropout)

    def gradient_of_channels(
        self,
        gradients: Tensor,
        columns: slice,
        mean: Tensor,
        collected: tuple[Tensor, Tensor],
        *,
        is_padded: bool = False,
    ) -> Callable[[slice, Dropout], Tensor]:
        def compute(chunk: slice, dropout: Dropout) -> Tensor:
            grad, x = gradients[chunk, columns], self.rows[chunk, columns]
            num_columns = x.shape[1]
            width = num_columns + (-num_columns % ROW_MULTIPLE if is_padded else 0)
            out = x.new_empty(len(x), width)
            return backward.finish_gradient(grad, x, mean, collected, self.num_rows, out, dropout)

        return compute


class KernelNormRelu(NormRelu):
    """A norm and the ReLU after it by kernels; see `NormRelu`.

    Results are in memory of their own, with columns of zeros up to a multiple of ALIGNED in 16 bits.
    """

    def __init__(self, norm: ChannelNorm):
        self.norm = norm
        self._backward = backward.NormSums(norm)

    def forward(self, rows: Tensor) -> Tensor:
        num_rows, num_columns = rows.shape
        if rows.dtype.itemsize == 2:
            num_columns += -num_columns % ALIGNED
        return forward.activate(rows, self.norm, rows.new_empty(num_rows, num_columns))

    def norm_alone(self, rows: Tensor, *, out: Tensor) -> Tensor:
        return forward.activate(rows, self.norm, out, relu=False)

    def again(self, rows: Tensor) -> "KernelActivation":
        return KernelActivation(self, rows)

    first = again

    def backward(self, grad: Tensor, chunk: Activation) -> Tensor:
        self._backward.mask(grad, chunk.rows)
        return grad[:, : chunk.rows.shape[1]]

    def backward_into(
        self,
        gradients: Tensor,
        grad: Tensor,
        chunk: Activation,
        *,
        is_first: bool = False,
        spread: Spread | None = None,
        shape: Shape = (0, 0, 0),
    ) -> None:
        if spread == "pooled":
            self._backward.add_pooled_to(gradients, grad, chunk.rows, shape, is_first=is_first)
        elif spread == "averaged":
            self._backward.add_averaged_to(gradients, grad, chunk.rows, shape, is_first=is_first)
        else:
            self._backward.add_to(gradients, grad, chunk.rows, is_first=is_first)

    def norm_backward_into(self, gradients: Tensor, grad: Tensor, rows: Tensor) -> None:
        self._backward = backward.NormSums(self.norm, relu=False)
        self._backward.add_to(gradients, grad, rows, is_first=True)

    def sums(self, collected: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        return self._backward.result(collected)


class KernelActivation(Activation):
    """A chunk of rows whose pooling and average are computed from the rows themselves; see `Activation`."""

    def pooled(self, shape: Shape) -> Tensor:
        n, height, width = shape
        if min(height, width) < 2:
            return super().pooled(shape)  # which raises the error of pooling
        num_columns = self.rows.shape[1]
        if self.rows.dtype.itemsize == 2:
            num_columns += -num_columns % ALIGNED
        out = self.rows.new_empty(n * (height // 2) * (width // 2), num_columns)
        return forward.activate_and_pool(self.rows, self.norm_relu.norm, shape, out)

    def averaged(self, shape: Shape) -> Tensor:
        return forward.activate_and_average(self.rows, self.norm_relu.norm, shape)
