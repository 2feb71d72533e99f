"""Memory that the layers of a stage use one after the other."""

from torch import Tensor

from .affine import Affine, activate
from .dropout import Dropout
from .rows import Scratch, chunks_of_rows, pointwise


class Workspace:
    """A feature buffer's rows, and scratch memory for what is computed from them.

    Args:
        rows: (R, C).
        shape: (N, H, W) with R = N * H * W.

    Attributes:
        inner: For a bottleneck's maps z (R, b).
        inner_grad: For gradients of a bottleneck.
        inner_chunk: For a chunk of what is computed from either.
    """

    def __init__(self, rows: Tensor, shape: tuple[int, int, int]):
        self.rows = rows
        self.num_rows = rows.shape[0]
        self.shape = shape
        self.inner, self.inner_grad = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)
        self.inner_chunk = Scratch(rows, rows.dtype)
        self._xhat, self._activated = Scratch(rows, rows.dtype), Scratch(rows, rows.dtype)

    def shape_of(self, images: slice) -> tuple[int, int, int]:
        """Shape of some images: (n, H, W)."""
        return images.stop - images.start, *self.shape[1:]

    def activated(self, chunk: slice, affine: Affine) -> Tensor:
        """Norm and ReLU of the first c channels: (r, c)."""
        return activate(self.rows[chunk, : affine.scale.shape[0]], affine, self._activated)

    def read(self, chunk: slice, affine: Affine) -> tuple[Tensor, Tensor]:
        """The first c channels without gaps, and norm and ReLU of them: (r, c) each."""
        num_columns = affine.scale.shape[0]
        xhat = self.rows[chunk, :num_columns]
        if not xhat.is_contiguous():
            xhat = self._xhat.shaped(*xhat.shape).copy_(xhat)
        return xhat, activate(xhat, affine, self._activated)

    def fill_inner(
        self, z: Tensor, affine: Affine, weight: Tensor, dropout: Dropout, within: slice | None = None
    ) -> None:
        """Write norm, ReLU, 1x1 convolution (b, c, 1, 1) and dropout of the first c channels into rows of z (R, b)."""
        for chunk in chunks_of_rows(self.rows, max(weight.shape[:2]), within):
            z[chunk] = dropout.of(pointwise(self.activated(chunk, affine), weight), chunk)
