"""Kernels of the products of a bottleneck layer, backward.

As in the forward pass, pointers are to the first row of a tile. A program of a kernel that computes the gradient of a
weight goes through some tiles, and writes its part of the sum over rows.

R rows, P parts; c channels that the layer reads, b of its bottleneck, k that it makes.
"""

import triton
import triton.language as tl

from .products_forward import bottleneck_of_tile
from .tiles import drop, load_norm, normalise, relu


@triton.jit(do_not_specialize=["num_rows", "height", "width", "c", "b", "k"])
def backward_3x3(
    dy, dy_pitch, k_loaded, weight2, strides2, norm2, z, z_pitch, b_loaded, g, parts,
    x, pitch, c_loaded, norm1, weight1, strides1, dropout, num_rows, height, width, c, b, k,
    AGAIN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write g (R, b), the gradient of norm2(z), and sums (tiles, 2, b) of g and g * (z - mean).

    If AGAIN, z is computed and written first, as in the forward pass; else it is read.
    """
    tile = tl.program_id(0).to(tl.int64)
    start = tile * BLOCK_R
    rows, columns, new = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_K)
    row_ok, column_ok, new_ok = rows < num_rows - start, columns < b, new < k
    inside = row_ok[:, None] & column_ok[None, :]
    place = start * z_pitch + (rows[:, None] * z_pitch + columns[None, :])
    stored = row_ok[:, None] & (columns < b_loaded)[None, :]
    if AGAIN:
        value = bottleneck_of_tile(
            x + start * pitch, pitch, c_loaded, norm1, weight1, strides1, c, b, rows, row_ok, columns,
            PRECISION, BLOCK_C,
        )  # fmt: skip
        if dropout is not None:
            value = drop(value, dropout[0] + start * b, rows[:, None] * b + columns[None, :], inside, dropout[1])
        maps = value.to(z.dtype.element_ty)
        tl.store(z + place, maps, mask=stored)
    pixels = tl.program_id(0) * BLOCK_R + rows
    left, top = pixels % width, pixels // width % height
    grad = tl.zeros((BLOCK_R, BLOCK_B), tl.float32)
    for tap in range(9):
        up, back = 1 - tap // 3, 1 - tap % 3
        is_in_image = (top + up >= 0) & (top + up < height) & (left + back >= 0) & (left + back < width)
        source = dy + start * dy_pitch + ((rows + up * width + back)[:, None] * dy_pitch + new[None, :])
        of_new = tl.load(source, mask=(row_ok & is_in_image)[:, None] & (new < k_loaded)[None, :], other=0.0)
        of_new = tl.where(new_ok[None, :], of_new, 0.0)
        weights = new[:, None] * strides2[0] + columns[None, :] * strides2[1]
        weights += tap // 3 * strides2[2] + tap % 3 * strides2[3]
        w = tl.load(weight2 + weights, mask=new_ok[:, None] & column_ok[None, :], other=0.0)
        grad = tl.dot(of_new, w.to(of_new.dtype), grad, input_precision=PRECISION)
    if not AGAIN:
        maps = tl.load(z + place, mask=stored, other=0.0)
    mean, scale, bias = load_norm(norm2.mean, norm2.invstd, norm2.weight, norm2.bias, columns, column_ok)
    difference = maps.to(tl.float32) - mean
    grad = tl.where(inside & ~(difference * scale + bias <= 0.0), grad, 0.0).to(g.dtype.element_ty)
    tl.store(g + place, grad, mask=stored)
    grad = grad.to(tl.float32)
    part = parts + tile * 2 * b + columns
    tl.store(part, tl.sum(grad, 0), mask=column_ok)
    tl.store(part + b, tl.sum(tl.where(inside, grad * difference, 0.0), 0), mask=column_ok)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "height", "width", "b", "k", "part_stride"])
def backward_3x3_weight(
    dy, dy_pitch, k_loaded, norm, z, z_pitch, b_loaded, parts, part_stride, strides,
    num_rows, rows_per_program, height, width, b, k,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write parts of the gradient of W (k, b, 3, 3), with strides. A program has one row of the filter, three taps."""
    program, filter_row = tl.program_id(0), tl.program_id(1)
    rows, columns, new = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_K)
    column_ok = columns < b
    mean, scale, bias = load_norm(norm.mean, norm.invstd, norm.weight, norm.bias, columns, column_ok)
    left_tap = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    middle_tap = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    right_tap = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    up = 1 - filter_row
    first = program * rows_per_program
    for start in range(first, tl.minimum(first + rows_per_program, num_rows), BLOCK_R):
        pixels = start + rows
        row_ok = pixels < num_rows
        left, top = pixels % width, pixels // width % height
        source = z + tl.cast(start, tl.int64) * z_pitch + (rows[:, None] * z_pitch + columns[None, :])
        maps = tl.load(source, mask=row_ok[:, None] & (columns < b_loaded)[None, :], other=0.0)
        a = relu(normalise(maps, mean, scale, bias))
        a = tl.trans(tl.where(row_ok[:, None] & column_ok[None, :], a, 0.0).to(z.dtype.element_ty))
        in_image = row_ok & (top + up >= 0) & (top + up < height)
        loaded = (new < k_loaded)[None, :]
        of_new = dy + tl.cast(start, tl.int64) * dy_pitch + ((rows + up * width)[:, None] * dy_pitch + new[None, :])
        grad = tl.load(of_new + dy_pitch, mask=(in_image & (left + 1 < width))[:, None] & loaded, other=0.0)
        left_tap = tl.dot(a, grad, left_tap, input_precision=PRECISION)
        grad = tl.load(of_new, mask=in_image[:, None] & loaded, other=0.0)
        middle_tap = tl.dot(a, grad, middle_tap, input_precision=PRECISION)
        grad = tl.load(of_new - dy_pitch, mask=(in_image & (left > 0))[:, None] & loaded, other=0.0)
        right_tap = tl.dot(a, grad, right_tap, input_precision=PRECISION)
    place = new[None, :] * strides[0] + columns[:, None] * strides[1] + filter_row * strides[2]
    part = parts + program.to(tl.int64) * part_stride + place
    inside = column_ok[:, None] & (new < k)[None, :]
    tl.store(part, left_tap, mask=inside)
    tl.store(part + strides[3], middle_tap, mask=inside)
    tl.store(part + 2 * strides[3], right_tap, mask=inside)


@triton.jit
def grad_of_bottleneck(
    g, z, z_pitch, b_loaded, norm, total, product, dropout, start, num_rows, b, rows, columns, FROZEN: tl.constexpr
):
    """Compute the gradient of z of a tile, before its dropout, in the dtype of z."""
    row_ok, column_ok = rows < num_rows - start, columns < b
    place = start * z_pitch + (rows[:, None] * z_pitch + columns[None, :])
    loaded = row_ok[:, None] & (columns < b_loaded)[None, :]
    invstd = tl.load(norm.invstd + columns, mask=column_ok, other=0.0)
    scale = tl.load(norm.weight + columns, mask=column_ok, other=0.0) * invstd
    grad = tl.load(g + place, mask=loaded, other=0.0).to(tl.float32)
    if not FROZEN:
        mean = tl.load(norm.mean + columns, mask=column_ok, other=0.0)
        offset = tl.load(total + columns, mask=column_ok, other=0.0) / num_rows
        slope = tl.load(product + columns, mask=column_ok, other=0.0) * invstd / num_rows
        difference = tl.load(z + place, mask=loaded, other=0.0).to(tl.float32) - mean[None, :]
        grad = grad - offset[None, :] - difference * slope[None, :]
    grad = grad * scale[None, :]
    inside = row_ok[:, None] & column_ok[None, :]
    if dropout is not None:
        grad = drop(grad, dropout[0] + start * b, rows[:, None] * b + columns[None, :], inside, dropout[1])
    return tl.where(inside, grad, 0.0).to(z.dtype.element_ty)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "c", "b", "part_stride"])
def backward_1x1(
    g, z, z_pitch, b_loaded, norm2, total, product, dropout, weight, strides,
    x, pitch, c_loaded, norm1, grads, grad_pitch, parts, part_stride, num_rows, rows_per_program, c, b,
    FROZEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the gradient of x (R, c) to `grads`, and write parts (P, b + 2, c).

    The parts are those of the gradient of W (b, c), and of the sums of the gradient of norm1(x) and of that times
    (x - mean). A program has BLOCK_C columns. Columns of `grads` from c on are overwritten: nobody needs them any more.
    """
    # Programs of the same rows run together, so that they find g and z in the cache.
    column_tile, program = tl.program_id(0), tl.program_id(1)
    rows, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B)
    inputs = column_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    input_ok, column_ok = inputs < c, columns < b
    mean, scale, bias = load_norm(norm1.mean, norm1.invstd, norm1.weight, norm1.bias, inputs, input_ok)
    weights = columns[:, None] * strides[0] + inputs[None, :] * strides[1]
    w = tl.load(weight + weights, mask=column_ok[:, None] & input_ok[None, :], other=0.0).to(z.dtype.element_ty)
    of_weight = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    sums = tl.zeros((BLOCK_C,), tl.float32)
    products = tl.zeros((BLOCK_C,), tl.float32)
    first = program * rows_per_program
    for tile in range(first, tl.minimum(first + rows_per_program, num_rows), BLOCK_R):
        start = tl.cast(tile, tl.int64)
        dz = grad_of_bottleneck(
            g, z, z_pitch, b_loaded, norm2, total, product, dropout, start, num_rows, b, rows, columns, FROZEN
        )
        inside = (rows < num_rows - start)[:, None] & input_ok[None, :]
        loaded = (rows < num_rows - start)[:, None] & (inputs < c_loaded)[None, :]
        source = x + start * pitch + (rows[:, None] * pitch + inputs[None, :])
        difference = tl.load(source, mask=loaded, other=0.0).to(tl.float32) - mean
        u = difference * scale + bias
        a = tl.where(inside, relu(u), 0.0).to(x.dtype.element_ty)
        of_weight = tl.dot(tl.trans(dz), a, of_weight, input_precision=PRECISION)
        grad = tl.where(inside & ~(u <= 0.0), tl.dot(dz, w, input_precision=PRECISION), 0.0)
        sums += tl.sum(grad, 0)
        products += tl.sum(tl.where(inside, grad * difference, 0.0), 0)
        grad = grad * scale
        target = grads + start * grad_pitch + (rows[:, None] * grad_pitch + inputs[None, :])
        grad += tl.load(target, mask=loaded, other=0.0).to(tl.float32)
        tl.store(target, grad.to(grads.dtype.element_ty), mask=loaded)
    part = parts + program.to(tl.int64) * part_stride + inputs
    tl.store(part[None, :] + columns[:, None] * c, of_weight, mask=column_ok[:, None] & input_ok[None, :])
    tl.store(part + b * c, sums, mask=input_ok)
    tl.store(part + (b + 1) * c, products, mask=input_ok)


@triton.jit(do_not_specialize=["num_rows", "c", "b"])
def backward_1x1_input(
    g, z, z_pitch, b_loaded, norm2, total, product, dropout, weight, strides,
    x, pitch, c_loaded, norm1, grads, grad_pitch, parts, num_rows, c, b,
    FROZEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Do what `backward_1x1` does, but for the gradient of W: parts are the sums (tiles, 2, c)."""
    tile = tl.program_id(0).to(tl.int64)
    start = tile * BLOCK_R
    rows, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B)
    row_ok = rows < num_rows - start
    dz = grad_of_bottleneck(
        g, z, z_pitch, b_loaded, norm2, total, product, dropout, start, num_rows, b, rows, columns, FROZEN
    )
    for first in range(0, c, BLOCK_C):
        inputs = first + tl.arange(0, BLOCK_C)
        input_ok = inputs < c
        mean, scale, bias = load_norm(norm1.mean, norm1.invstd, norm1.weight, norm1.bias, inputs, input_ok)
        weights = columns[:, None] * strides[0] + inputs[None, :] * strides[1]
        w = tl.load(weight + weights, mask=(columns < b)[:, None] & input_ok[None, :], other=0.0)
        grad = tl.dot(dz, w.to(dz.dtype), input_precision=PRECISION)
        inside = row_ok[:, None] & input_ok[None, :]
        loaded = row_ok[:, None] & (inputs < c_loaded)[None, :]
        source = x + start * pitch + (rows[:, None] * pitch + inputs[None, :])
        difference = tl.load(source, mask=loaded, other=0.0).to(tl.float32) - mean
        grad = tl.where(inside & ~(difference * scale + bias <= 0.0), grad, 0.0)
        part = parts + tile * 2 * c + inputs
        tl.store(part, tl.sum(grad, 0), mask=input_ok)
        tl.store(part + c, tl.sum(tl.where(inside, grad * difference, 0.0), 0), mask=input_ok)
        grad = grad * scale
        target = grads + start * grad_pitch + (rows[:, None] * grad_pitch + inputs[None, :])
        grad += tl.load(target, mask=loaded, other=0.0).to(tl.float32)
        tl.store(target, grad.to(grads.dtype.element_ty), mask=loaded)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "c", "b", "part_stride"])
def backward_1x1_weight(
    g, z, z_pitch, b_loaded, norm2, total, product, dropout,
    x, pitch, c_loaded, norm1, parts, part_stride, num_rows, rows_per_program, c, b,
    FROZEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write parts (P, b, c) of the gradient of W alone."""
    column_tile, program = tl.program_id(0), tl.program_id(1)
    rows, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_B)
    inputs = column_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    input_ok = inputs < c
    mean, scale, bias = load_norm(norm1.mean, norm1.invstd, norm1.weight, norm1.bias, inputs, input_ok)
    of_weight = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    first = program * rows_per_program
    for tile in range(first, tl.minimum(first + rows_per_program, num_rows), BLOCK_R):
        start = tl.cast(tile, tl.int64)
        row_ok = rows < num_rows - start
        dz = grad_of_bottleneck(
            g, z, z_pitch, b_loaded, norm2, total, product, dropout, start, num_rows, b, rows, columns, FROZEN
        )
        source = x + start * pitch + (rows[:, None] * pitch + inputs[None, :])
        maps = tl.load(source, mask=row_ok[:, None] & (inputs < c_loaded)[None, :], other=0.0)
        a = relu(normalise(maps, mean, scale, bias))
        a = tl.where(row_ok[:, None] & input_ok[None, :], a, 0.0).to(x.dtype.element_ty)
        of_weight = tl.dot(tl.trans(dz), a, of_weight, input_precision=PRECISION)
    part = parts + program.to(tl.int64) * part_stride + inputs[None, :] + columns[:, None] * c
    tl.store(part, of_weight, mask=(columns < b)[:, None] & input_ok[None, :])
