"""Feature maps as rows: a row is a pixel of an image, its columns are the channels, as in a channels_last tensor.

N images, C channels, H x W pixels, R = N * H * W rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import capability_of

# Rows are processed in chunks of about this size. On a CPU, a chunk and its results should stay in the caches, but many
# small chunks cost time of their own. Sizes of 4 to 16 MiB were tried here with `python demo.py benchmark` on an AMD
# EPYC (1 MiB of second-level cache a core, 32 MiB of third-level cache): 4 was a little faster than 8 at L=100, k=12,
# batch 64 on one thread, and 8 was faster on two threads and for deeper networks. On a GPU, a chunk has to fill the
# device; that size has not been tuned on one.
CPU_CHUNK_BYTES = 8 * 2**20
GPU_CHUNK_BYTES = 128 * 2**20

# Where the whole buffer is small, a chunk is a third of it, so that chunks do not dominate the memory, but no less than
# the sizes above divided by this. At L=40, k=12, batch 16 that lowered the peak by a third and was no slower.
MAX_CHUNK_DIVISOR = 4

# On a CPU with one thread, ATen takes a much slower path for 1x1 convolutions of fewer than 16 images. All rows are
# alike to a 1x1 convolution, so they can be passed as 16 images of one column.
NUM_IMAGES = 16

ROW_MULTIPLE = 16  # numbers: on a GPU, a row of a buffer has a multiple of these

Shape = tuple[int, int, int]  # (N, H, W)


def as_nchw(rows: Tensor, shape: Shape) -> Tensor:
    """View rows (N * H * W, C) as a channels_last tensor (N, C, H, W)."""
    return rows.view(*shape, rows.shape[1]).permute(0, 3, 1, 2)


def as_rows(x: Tensor) -> Tensor:
    """View a channels_last tensor (N, C, H, W) as rows (N * H * W, C); any other memory format is copied."""
    return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])


def as_any_images(rows: Tensor) -> Tensor:
    """View rows (R, C) as some images (N', C, H', 1), for operations that treat all pixels of all images alike."""
    num_rows, num_columns = rows.shape
    n = NUM_IMAGES if num_rows % NUM_IMAGES == 0 else 1
    return rows.view(n, num_rows // n, 1, num_columns).permute(0, 3, 1, 2)


def empty_buffer(like: Tensor, num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
    """Return uninitialised rows (R, C) for a buffer. On a GPU they are padded, so that each begins at 16 bytes or more.

    Args:
        like: A tensor on the same device.
        num_rows: R.
        num_columns: C.
        dtype: The dtype of the rows.
    """
    pitch = -(-num_columns // ROW_MULTIPLE) * ROW_MULTIPLE if capability_of(like) else num_columns
    return like.new_empty(num_rows, pitch, dtype=dtype)[:, :num_columns]


def pointwise(rows: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution (C', C, 1, 1) to rows (R, C), giving (R, C')."""
    return as_rows(F.conv2d(as_any_images(rows), weight))


def pointwise_backward(grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of rows (R, C) and weight in `pointwise` from the gradient of its result (R, C')."""
    grad_rows, grad_weight = convolution_backward(as_any_images(grad), as_any_images(rows), weight, padding=0)
    return as_rows(grad_rows), grad_weight


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *, padding: int) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the input and the weight of a convolution with stride 1."""
    geometry = ([1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward.default(grad, x, weight, None, *geometry, [True, True, False])[:2]


def numbers_in_a_chunk(rows: Tensor) -> int:
    """Return about how many numbers a chunk of a feature buffer (R, C) should have on its device."""
    is_cpu = rows.device.type == "cpu" and not capability_of(rows)
    most = CPU_CHUNK_BYTES if is_cpu else GPU_CHUNK_BYTES
    return min(most, max(most // MAX_CHUNK_DIVISOR, rows.nbytes // 3)) // rows.element_size()


def chunks_of_rows(num_rows: int, num_columns: int, numbers: int, within: slice | None = None) -> Iterator[slice]:
    """Slice R rows into chunks.

    Unless everything fits into one chunk, its length is a power of two, a multiple of the blocks in which convolutions
    on a CPU work. That makes a step faster.

    Args:
        num_rows: R.
        num_columns: Columns of a chunk.
        numbers: About how many numbers a chunk has in these columns, but at least NUM_IMAGES rows.
        within: Cover these rows only.
    """
    start, stop, _ = (within or slice(None)).indices(num_rows)
    most = max(NUM_IMAGES, numbers // num_columns)
    return _slices(start, stop, stop - start if stop - start <= most else _power_of_two(most), _most_chunks)


def chunks_of_images(
    shape: Shape, num_columns: int, numbers: int, *, are_joined: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Slice images into chunks, and yield each slice of images with the slice of their rows.

    Args:
        shape: (N, H, W).
        num_columns: Columns of a chunk.
        numbers: About how many numbers a chunk has in these columns, but at least one image.
        are_joined: Whether the results of all chunks are concatenated, so that `two_chunks_for_all` may not leave any
            out.
    """
    num_images, height, width = shape
    num_pixels = height * width
    step = _power_of_two(max(1, numbers // (num_pixels * num_columns)))
    for images in _slices(0, num_images, step, None if are_joined else _most_chunks):
        yield images, slice(images.start * num_pixels, images.stop * num_pixels)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


_most_chunks: int | None = None


@contextmanager
def two_chunks_for_all() -> Iterator[None]:
    """Let two chunks stand for all of them, since further ones only repeat what the second one does to memory.

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
    """Memory for an intermediate result that the next one overwrites.

    Args:
        like: A tensor on the same device.
        dtype: The dtype of the results.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype):
        self._device, self._dtype = like.device, dtype
        self._memory: Tensor | None = None

    def shaped(self, num_rows: int, num_columns: int) -> Tensor:
        """Return uninitialised rows that share their memory with all rows returned earlier."""
        size = num_rows * num_columns
        if self._memory is None or self._memory.numel() < size:
            self._memory = None  # freed first, so that there are never two
            self._memory = torch.empty(size, dtype=self._dtype, device=self._device)
        return self._memory[:size].view(num_rows, num_columns)


class FreshMemory(Scratch):
    """Memory for an intermediate result that is new each time, and freed with the result."""

    def shaped(self, num_rows: int, num_columns: int) -> Tensor:
        """Return uninitialised rows."""
        return torch.empty(num_rows, num_columns, dtype=self._dtype, device=self._device)


class Gathered:
    """Rows (R, c) that are computed in chunks. A chunk of all rows is taken as it is; others are copied.

    Args:
        num_rows: R.
        memory: For the rows, if there are several chunks.
    """

    def __init__(self, num_rows: int, memory: Scratch):
        self._num_rows, self._memory = num_rows, memory
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The rows, after all chunks."""
        assert self._rows is not None
        return self._rows

    def place_of(self, chunk: slice, rows: Tensor) -> Tensor | None:
        """Return where to copy a chunk of rows (r, c) to; None if it has been taken."""
        if len(rows) == self._num_rows:
            self._rows = rows
            return None
        if self._rows is None:
            self._rows = self._memory.shaped(self._num_rows, rows.shape[1])
        return self._rows[chunk]

    def put(self, chunk: slice, rows: Tensor) -> Tensor:
        """Take or copy a chunk of rows (r, c), and return it as it is kept."""
        place = self.place_of(chunk, rows)
        return rows if place is None else place.copy_(rows)
