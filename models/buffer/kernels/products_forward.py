"""Kernels of the products of a bottleneck layer, forward.

A program computes some rows of the result, all of its columns. Pointers are to the first row of the program, so that
offsets within it fit into 32 bits. Norms are `NormVectors` of pointers; dropout is a mask and a rate, or None.

R rows, c channels that the layer reads, b of its bottleneck, k that it makes.
"""

import triton
import triton.language as tl

from .tiles import drop, load_norm, normalise, relu


@triton.jit
def bottleneck_of_tile(
    x, pitch, c_loaded, norm, weight, strides, c, b, rows, row_ok, columns,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute z = relu(norm(x)) W^T of a tile in float32: W is (b, c) with strides, its dtype is changed here."""
    z = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for first in range(0, c, BLOCK_C):
        inputs = first + tl.arange(0, BLOCK_C)
        input_ok = inputs < c
        mean, scale, bias = load_norm(norm.mean, norm.invstd, norm.weight, norm.bias, inputs, input_ok)
        inside = row_ok[:, None] & (inputs < c_loaded)[None, :]
        maps = tl.load(x + (rows[:, None] * pitch + inputs[None, :]), mask=inside, other=0.0)
        a = tl.where(input_ok[None, :], relu(normalise(maps, mean, scale, bias)), 0.0).to(x.dtype.element_ty)
        place = columns[None, :] * strides[0] + inputs[:, None] * strides[1]
        w = tl.load(weight + place, mask=input_ok[:, None] & (columns < b)[None, :], other=0.0)
        z = tl.dot(a, w.to(a.dtype), z, input_precision=PRECISION)
    return z


@triton.jit
def store_moments(values, row_ok, columns, num_columns, part):
    """Write mean, sum of squared differences from it, and number of rows (3, columns) of a tile.

    The mean of values that are far from 0 loses digits, so what is missing is added: the mean of differences from it.
    """
    column_ok = columns < num_columns
    count = tl.sum(row_ok.to(tl.float32), 0)
    rough = tl.sum(tl.where(row_ok[:, None], values, 0.0), 0) / count
    difference = tl.where(row_ok[:, None], values - rough[None, :], 0.0)
    rest = tl.sum(difference, 0) / count
    difference = tl.where(row_ok[:, None], difference - rest[None, :], 0.0)
    tl.store(part + columns, rough + rest, mask=column_ok)
    tl.store(part + num_columns + columns, tl.sum(difference * difference, 0), mask=column_ok)
    tl.store(part + 2 * num_columns + columns, tl.zeros_like(rough) + count, mask=column_ok)


@triton.jit(do_not_specialize=["num_rows", "c", "b"])
def bottleneck_1x1(
    x, pitch, c_loaded, norm, weight, strides, dropout, z, z_pitch, b_stored, parts, num_rows, c, b,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write z (R, b), with zeros up to column b_stored, and moments (tiles, 3, b) of the values as they are stored."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * BLOCK_R
    rows, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B)
    row_ok = rows < num_rows - start
    value = bottleneck_of_tile(
        x + start * pitch, pitch, c_loaded, norm, weight, strides, c, b, rows, row_ok, columns, PRECISION, BLOCK_C
    )
    if dropout is not None:
        inside = row_ok[:, None] & (columns < b)[None, :]
        value = drop(value, dropout[0] + start * b, rows[:, None] * b + columns[None, :], inside, dropout[1])
    stored = value.to(z.dtype.element_ty)
    inside = row_ok[:, None] & (columns < b_stored)[None, :]
    tl.store(z + start * z_pitch + (rows[:, None] * z_pitch + columns[None, :]), stored, mask=inside)
    store_moments(stored.to(tl.float32), row_ok, columns, b, parts + tile * 3 * b)


@triton.jit(do_not_specialize=["num_rows", "height", "width", "b", "k"])
def new_maps_3x3(
    z, z_pitch, b_loaded, norm, weight, strides, dropout, y, pitch, parts, num_rows, height, width, b, k,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write y (R, k) = relu(norm(z)) * W, 3x3, and moments (tiles, 3, k) of the values as they are stored."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * BLOCK_R
    rows, inputs, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_K)
    row_ok, input_ok, column_ok = rows < num_rows - start, inputs < b, columns < k
    pixels = tl.program_id(0) * BLOCK_R + rows
    left, top = pixels % width, pixels // width % height
    mean, scale, bias = load_norm(norm.mean, norm.invstd, norm.weight, norm.bias, inputs, input_ok)
    value = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        is_in_image = (top + down >= 0) & (top + down < height) & (left + right >= 0) & (left + right < width)
        inside = (row_ok & is_in_image)[:, None]
        source = z + start * z_pitch + ((rows + down * width + right)[:, None] * z_pitch + inputs[None, :])
        maps = tl.load(source, mask=inside & (inputs < b_loaded)[None, :], other=0.0)
        a = relu(normalise(maps, mean, scale, bias))
        a = tl.where(inside & input_ok[None, :], a, 0.0).to(z.dtype.element_ty)
        place = columns[None, :] * strides[0] + inputs[:, None] * strides[1]
        place += tap // 3 * strides[2] + tap % 3 * strides[3]
        w = tl.load(weight + place, mask=input_ok[:, None] & column_ok[None, :], other=0.0)
        value = tl.dot(a, w.to(a.dtype), value, input_precision=PRECISION)
    inside = row_ok[:, None] & column_ok[None, :]
    if dropout is not None:
        value = drop(value, dropout[0] + start * k, rows[:, None] * k + columns[None, :], inside, dropout[1])
    stored = value.to(y.dtype.element_ty)
    tl.store(y + start * pitch + (rows[:, None] * pitch + columns[None, :]), stored, mask=inside)
    store_moments(stored.to(tl.float32), row_ok, columns, k, parts + tile * 3 * k)
