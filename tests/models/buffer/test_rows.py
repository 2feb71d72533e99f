import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.buffer import rows as rows_module
from models.buffer.operations import relu_backward
from models.buffer.rows import (
    Scratch,
    as_nchw,
    as_rows,
    chunks_of_images,
    chunks_of_rows,
    numbers_in_a_chunk,
    pointwise,
    pointwise_backward,
)

generated = settings(deadline=None, derandomize=True, max_examples=50)


def test_rows_are_pixels_and_columns_are_channels():
    maps = torch.randn(2, 5, 3, 4)
    rows = as_rows(maps)
    assert torch.equal(rows[2 * 4 + 1], maps[0, :, 2, 1])
    assert torch.equal(rows[3 * 4 + 3], maps[1, :, 0, 3])
    assert torch.equal(as_nchw(rows, (2, 3, 4)), maps)


def test_rows_of_channels_last_maps_share_their_memory():
    maps = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    assert as_rows(maps).data_ptr() == maps.data_ptr()
    assert as_nchw(as_rows(maps), (2, 3, 4)).data_ptr() == maps.data_ptr()


# 16 and 48 rows may be passed as 16 images; the others may not.
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 48])
def test_a_pointwise_convolution_is_a_product_of_matrices(num_rows):
    rows = torch.randn(num_rows, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    expected = rows @ weight.flatten(1).T
    torch.testing.assert_close(pointwise(rows, weight), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(num_rows, 3, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, (rows, weight), grad)
    actual = pointwise_backward(grad, rows.detach(), weight.detach())
    torch.testing.assert_close(actual, gradients, rtol=1e-12, atol=1e-12)


@generated
@given(
    num_images=st.integers(1, 20),
    side=st.integers(1, 6),
    num_columns=st.integers(1, 9),
    read=st.integers(1, 9),
    chunk_bytes=st.integers(1, 20_000),
)
def test_chunks_cover_each_row_once_in_order(num_images, side, num_columns, read, chunk_bytes):
    shape, rows = (num_images, side, side + 1), torch.zeros(num_images * side * (side + 1), num_columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "CPU_CHUNK_BYTES", chunk_bytes)
        numbers = numbers_in_a_chunk(rows)
        of_rows = list(chunks_of_rows(len(rows), min(read, num_columns), numbers))
        of_images = list(chunks_of_images(shape, read, numbers))
        within = slice(len(rows) // 3, len(rows) // 2)
        of_part = list(chunks_of_rows(len(rows), read, numbers, within))
    everything = list(range(len(rows)))
    assert [index for chunk in of_rows for index in everything[chunk]] == everything
    assert [index for chunk in of_part for index in everything[chunk]] == everything[within]
    assert [index for _, chunk in of_images for index in everything[chunk]] == everything
    assert [index for images, _ in of_images for index in range(num_images)[images]] == list(range(num_images))
    assert all(
        rows[chunk].numel() == rows[: side * (side + 1)].numel() * len(range(num_images)[images])
        for images, chunk in of_images
    )


def test_chunks_have_about_the_size_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(rows_module, "CPU_CHUNK_BYTES", 4 * 1000 * 10)
    rows = torch.zeros(64 * 50, 20)
    numbers = numbers_in_a_chunk(rows)
    # 1000 rows of ten columns, or ten images of 50 rows of twenty columns, rounded down to a power of two.
    assert {chunk.stop - chunk.start for chunk in list(chunks_of_rows(len(rows), 10, numbers))[:-1]} == {512}
    assert {images.stop - images.start for images, _ in list(chunks_of_images((64, 5, 10), 20, numbers))[:-1]} == {8}
    # Rows that fit as a whole are one chunk.
    assert list(chunks_of_rows(len(rows), 10, numbers, slice(7, 1007))) == [slice(7, 1007)]


def test_a_gradient_is_zero_where_the_relu_was():
    activated, grad = torch.tensor([0.0, 1.0, 1e-30, 0.0]), torch.tensor([1.0, 2.0, 3.0, -4.0])
    assert relu_backward(grad, activated) is grad
    assert grad.tolist() == [0.0, 2.0, 3.0, 0.0]


def test_scratch_memory_grows_and_is_used_again():
    scratch = Scratch(torch.zeros(0), torch.float64)
    large = scratch.shaped(4, 3)
    assert (large.shape, large.dtype) == ((4, 3), torch.float64)
    assert large.is_contiguous()
    assert scratch.shaped(5, 2).data_ptr() == large.data_ptr()
    assert scratch.shaped(5, 3).shape == (5, 3)
