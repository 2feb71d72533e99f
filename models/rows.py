"""Feature maps as rows: a row is a pixel of an image, its columns are the channels, as in a channels_last tensor.

N images, C channels, H x W pixels, R = N * H * W rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows are worked on in chunks of about so many bytes. On a CPU a chunk and its results should stay in the caches, but
# many small chunks cost time of their own. Of 4 to 16 MiB, tried in this place with `python demo.py benchmark` on an
# AMD EPYC (1 MiB of second-level cache a core, 32 MiB of third-level cache), 4 was a little faster than 8 at L=100,
# k=12, batch 64 on one thread, and 8 was faster on two threads and for deeper networks. On a GPU a chunk has to fill
# the device; that number was not tuned on one.
CPU_CHUNK_BYTES = 8 * 2**20
GPU_CHUNK_BYTES = 128 * 2**20

# Where the whole buffer is small, a chunk is a third of it, so that chunks are not what needs the memory, but not less
# than the most divided by this. At L=40, k=12, batch 16 that was a third less at the peak, and no slower.
SMALLEST_SHARE_OF_A_CHUNK = 4

# On a CPU, ATen takes a much slower path for 1x1 filters with fewer than 16 images on one thread. For such a filter all
# rows are alike, so that they can be passed as 16 images of one column.
IMAGES_OF_A_CHUNK = 16


def as_maps(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """View rows (N * H * W, C) as a channels_last tensor (N, C, H, W); `shape` is (N, H, W)."""
    return rows.view(*shape, rows.shape[1]).permute(0, 3, 1, 2)


def as_rows(maps: Tensor) -> Tensor:
    """View a channels_last tensor (N, C, H, W) as rows (N * H * W, C); any other memory format is copied."""
    return maps.permute(0, 2, 3, 1).contiguous().view(-1, maps.shape[1])


def as_any_maps(rows: Tensor) -> Tensor:
    """View rows (R, C) as maps (N', C, H', 1), for what treats all pixels of all images alike."""
    num_rows, num_columns = rows.shape
    n = IMAGES_OF_A_CHUNK if num_rows % IMAGES_OF_A_CHUNK == 0 else 1
    return rows.view(n, num_rows // n, 1, num_columns).permute(0, 3, 1, 2)


def pointwise(rows: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution (C', C, 1, 1) to rows (R, C): returns (R, C')."""
    return as_rows(F.conv2d(as_any_maps(rows), weight))


def pointwise_backward(grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `pointwise` with respect to rows (R, C) and weight, from that of its result (R, C')."""
    grad_rows, grad_weight = convolution_backward(as_any_maps(grad), as_any_maps(rows), weight, padding=0)
    return as_rows(grad_rows), grad_weight


def convolution_backward(grad: Tensor, maps: Tensor, weight: Tensor, *, padding: int) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution of stride 1 with respect to its input and its weight."""
    geometry = ([1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward.default(grad, maps, weight, None, *geometry, [True, True, False])[:2]


def zero_where_relu_was(grad: Tensor, activated: Tensor) -> Tensor:
    """Set a gradient to 0, in place, wherever the result of a ReLU is 0."""
    return torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


def chunks_of_rows(rows: Tensor, num_columns: int, within: slice | None = None) -> Iterator[slice]:
    """Slices that cover all rows; a chunk of `num_columns` has about the size that the device works best on.

    Their length is a power of two, which the blocks fit in which a CPU's convolutions work; a step is faster for it.
    What fits as a whole is one chunk of any length.

    Args:
        rows: Of the feature buffer.
        num_columns: Of a chunk.
        within: Cover these rows only.
    """
    start, stop, _ = (within or slice(None)).indices(rows.shape[0])
    most = max(IMAGES_OF_A_CHUNK, _numbers_in_a_chunk(rows) // num_columns)
    return _slices(start, stop, stop - start if stop - start <= most else _power_of_two(most), _most_chunks)


def chunks_of_images(
    rows: Tensor, shape: tuple[int, int, int], num_columns: int, *, collects: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Slices of images that cover all of them, each with the slice of its rows; `shape` is (N, H, W).

    A chunk of `num_columns` has about the size that the device works best on, but is one image at least. `rows` are
    those of the feature buffer. `collects` says that results of all chunks are joined in the end, so that none may be
    left out by `two_chunks_for_all`.
    """
    num_images, height, width = shape
    num_pixels = height * width
    step = _power_of_two(max(1, _numbers_in_a_chunk(rows) // (num_pixels * num_columns)))
    for images in _slices(0, num_images, step, None if collects else _most_chunks):
        yield images, slice(images.start * num_pixels, images.stop * num_pixels)


def _numbers_in_a_chunk(rows: Tensor) -> int:
    most = CPU_CHUNK_BYTES if rows.device.type == "cpu" else GPU_CHUNK_BYTES
    return min(most, max(most // SMALLEST_SHARE_OF_A_CHUNK, rows.nbytes // 3)) // rows.element_size()


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


_most_chunks: int | None = None


@contextmanager
def two_chunks_for_all() -> Iterator[None]:
    """Let two chunks stand for all of them, where the others only repeat what the second one does to memory.

    Results are wrong then. It is for counting the memory of a step on fake tensors, which have no values: there the
    time depends on the number of operations alone.
    """
    global _most_chunks
    _most_chunks = 2
    try:
        yield
    finally:
        _most_chunks = None


def _slices(start: int, stop: int, step: int, most: int | None) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step)[:most])


class Scratch:
    """Memory for an intermediate result, used again for the next one.

    Args:
        like: A tensor on the device of the maps.
        dtype: Of the result.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype):
        self.memory = like.new_empty(0, dtype=dtype)

    def shaped(self, num_rows: int, num_columns: int) -> Tensor:
        """Uninitialised rows; they share the memory of those that were given out before."""
        if self.memory.numel() < num_rows * num_columns:
            self.memory = self.memory.new_empty(num_rows * num_columns)
        return self.memory[: num_rows * num_columns].view(num_rows, num_columns)
