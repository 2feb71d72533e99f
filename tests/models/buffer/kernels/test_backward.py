"""Kernels of the backward pass, against autograd in float64."""

import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from models.buffer.dropout import NO_DROPOUT, Dropout
from models.buffer.kernels.backward import NormSums, finish_gradient, norm_backward
from models.buffer.kernels.forward import Moments
from models.buffer.norms import ChannelNorm
from tests.support.kernel_rows import (
    DTYPES,
    FEW,
    PROGRAMS,
    SEEDS,
    SHAPES,
    as_images,
    as_rows,
    assert_rounded,
    batch_norm_of,
    features,
    in_buffer,
    numbers,
    programs,
    relative_error,
)
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS

READINGS = ["pixel", "2x2", "image", "without ReLU"]
SEVERAL_READERS = st.lists(
    st.tuples(st.sampled_from(READINGS), st.booleans(), st.floats(0.2, 1)), min_size=1, max_size=4
)


def frozen_norm(c):
    """A norm with running statistics, which are not those of any rows."""
    return ChannelNorm(3 + numbers(c), 0.5 + torch.rand(c, device=DEVICE), numbers(c), numbers(c))


def as_leaves(norm):
    return [vector.double().requires_grad_() for vector in (norm.weight, norm.bias)]


def activated(x, norm, leaves, *, frozen, relu=True):
    """Norm and ReLU in float64, as autograd follows them; mean and variance are followed unless frozen."""
    if frozen:
        xhat = (x - norm.mean.double()) * norm.invstd.double()
    else:
        variance, mean = torch.var_mean(x, 0, correction=0)
        assume(
            variance.min() > 1e-2
        )  # few rows may be alike, and then the gradient is large and wrong in any precision
        xhat = (x - mean) * (variance + 1e-5).rsqrt()
    u = xhat * leaves[0] + leaves[1]
    return F.relu(clear_of_zero(u)) if relu else u


def clear_of_zero(u):
    """Leave out the rare cases in which float32 and float64 may differ about the sign of a number."""
    assume(u.detach().abs().min() > 1e-5)
    return u


def assert_summed(actual, expected, num_rows):
    """Assert that sums over rows are exact but for rounding errors; what is added up is seldom above 20."""
    assert_rounded(actual, expected, scale=torch.full_like(expected, 20 * num_rows))


def as_read(a, reading, shape):
    """Return the norm as a reader hands it to its convolution or classifier."""
    if reading in ("pixel", "without ReLU"):
        return a
    images = as_images(a, shape)
    return as_rows(F.avg_pool2d(images, 2)) if reading == "2x2" else images.mean((2, 3))


def take_gradient(sums, reading, gradients, grad, x, shape, is_first):
    if reading in ("pixel", "without ReLU"):
        sums.add_to(gradients, grad, x, is_first=is_first)
    elif reading == "2x2":
        sums.add_pooled_to(gradients, grad, x, shape, is_first=is_first)
    else:
        sums.add_averaged_to(gradients, grad, x, shape, is_first=is_first)


@FEW
@given(SEEDS, SHAPES, st.integers(1, 70), SEVERAL_READERS, PROGRAMS, st.booleans())
def test_gradient_of_a_buffer_with_several_readers(seed, shape, num_columns, readers, num_programs, chunked):
    torch.manual_seed(seed)
    num_rows = shape[0] * shape[1] * shape[2]
    buffer = features(num_rows, num_columns, torch.float32)
    gradients = in_buffer(torch.zeros_like(buffer))
    a, d = torch.zeros(2, num_columns, device=DEVICE)
    x = buffer.double().requires_grad_()
    # The first reader in the backward pass reads all columns, as the last one of a block does.
    for i, (reading, frozen, share) in enumerate(readers):
        c = num_columns if i == 0 else max(1, int(share * num_columns))
        norm = frozen_norm(c) if frozen else batch_norm_of(buffer[:, :c])
        leaves, relu = as_leaves(norm), reading != "without ReLU"
        result = as_read(activated(x[:, :c], norm, leaves, frozen=frozen, relu=relu), reading, shape)
        grad = in_buffer(numbers(*result.shape))
        expected = torch.autograd.grad(result, leaves, grad.double(), retain_graph=True)
        result.backward(grad.double())
        sums = NormSums(norm, relu=relu)
        halves = [slice(0, 1), slice(1, shape[0])] if chunked and shape[0] > 1 else [slice(0, shape[0])]
        with programs(num_programs):
            for images in halves:
                part = (images.stop - images.start, *shape[1:])
                rows, read = (
                    slice(images.start * height, images.stop * height)
                    for height in (num_rows // shape[0], grad.shape[0] // shape[0])
                )
                take_gradient(sums, reading, gradients[rows, :c], grad[read], buffer[rows, :c], part, is_first=i == 0)
            total, product = sums.result(None if frozen else (a, d))
        assert_summed(product, expected[0], num_rows)
        assert_summed(total, expected[1], num_rows)
    mean = buffer.double().mean(0).float()
    out = numbers(num_rows, num_columns + 2)
    finish_gradient(gradients, buffer, mean, (a, d), num_rows, out)
    assert x.grad is not None
    assert (out[:, :num_columns].double() - x.grad).abs().max() < 1e-4 * (1 + x.grad.abs().max())
    assert not out[:, num_columns:].any()


@FEW
@given(SEEDS, st.integers(2, 99), st.integers(1, 70), PROGRAMS, st.booleans(), st.booleans(), st.booleans())
def test_gradient_of_a_bottleneck_with_dropout(seed, num_rows, b, num_programs, frozen, drops, chunked):
    torch.manual_seed(seed)
    z = in_buffer(numbers(num_rows, b))
    mask = torch.rand(num_rows, b, device=DEVICE) < 0.7
    before = z.double().requires_grad_()
    after = torch.where(mask, before / 0.7, 0) if drops else before
    halves = [slice(num_rows // 2), slice(num_rows // 2, None)] if chunked else [slice(None)]
    with programs(num_programs):
        moments = Moments()
        for chunk in halves:
            moments.add(z[chunk], Dropout(0.7, mask[chunk]) if drops else NO_DROPOUT)
        mean, _, invstd = moments.result(1e-5)
        norm = ChannelNorm(mean, invstd, numbers(b), numbers(b))
        norm = frozen_norm(b) if frozen else norm
        leaves = as_leaves(norm)
        result = activated(after, norm, leaves, frozen=frozen)
        grad = numbers(num_rows, b)
        expected = torch.autograd.grad(result, [before, *leaves], grad.double())
        sums = NormSums(norm)
        for chunk in halves:
            sums.mask(grad[chunk], z[chunk])
        total, product = sums.result()
        for chunk in halves:
            dropout = Dropout(0.7, mask[chunk]) if drops else NO_DROPOUT
            of_batch = None if frozen else (total, product)
            norm_backward(grad[chunk], z[chunk], norm, of_batch, num_rows, grad[chunk], dropout)
    assert_summed(product, expected[1], num_rows)
    assert_summed(total, expected[2], num_rows)
    assert (grad - expected[0]).abs().max() < 1e-4 * (1 + expected[0].abs().max())


@FEW
@given(SEEDS, st.integers(1, 99), st.integers(1, 70), DTYPES, st.sampled_from([0, 5, 16]), st.booleans())
def test_what_is_added_to_gradients_is_rounded_once(seed, num_rows, c, dtype, padding, is_first):
    torch.manual_seed(seed)
    x, norm = features(num_rows, c, dtype), frozen_norm(c)
    scale = norm.weight.double() * norm.invstd.double()
    u = clear_of_zero((x.double() - norm.mean.double()) * scale + norm.bias.double())
    grad, gradients = numbers(num_rows, c + padding, dtype=dtype), numbers(num_rows, 128, dtype=dtype)
    grad_before, before = grad.clone(), gradients.clone()
    g = torch.where(u > 0, grad[:, :c].double(), 0)
    NormSums(norm).add_to(gradients[:, :c], grad, x, is_first=is_first)
    others = torch.zeros_like(before[:, :c]) if is_first else before[:, :c]
    assert_rounded(gradients[:, :c], others.double() + scale * g, scale=others.double().abs() + (scale * g).abs())
    untouched = -(-c // 16) * 16
    assert torch.equal(gradients[:, untouched:], before[:, untouched:])
    assert torch.equal(grad, grad_before)
    NormSums(norm).mask(grad, x)
    assert torch.equal(grad[:, :c].double(), g)


@FEW
@given(SEEDS, st.integers(1, 99), st.integers(1, 70), DTYPES, st.booleans(), PROGRAMS)
def test_gradients_of_inputs_are_rounded_once(seed, num_rows, c, dtype, drops, num_programs):
    torch.manual_seed(seed)
    x, g = features(num_rows, c, dtype), in_buffer(numbers(num_rows, c, dtype=dtype))
    norm, total, product = frozen_norm(c), numbers(c), numbers(c)
    mask = torch.rand(num_rows, c, device=DEVICE) < 0.7
    dropout = Dropout(0.7, mask) if drops else NO_DROPOUT
    mean, invstd, weight, _ = (vector.double() for vector in norm.vectors)

    def dropped(gradient):
        return torch.where(mask, gradient / 0.7, 0) if drops else gradient

    through = total.double() / 50 + (x.double() - mean) * product.double() / 50
    of_norm = total.double() / 50 + (x.double() - mean) * invstd * product.double() / 50
    size = 10 * (1 + g.double().abs() + through.abs() + of_norm.abs()) * (1 + (weight * invstd).abs())
    out = numbers(num_rows, c + 4, dtype=dtype)
    with programs(num_programs):
        finish_gradient(g, x, norm.mean, (total, product), 50, out, dropout)
        assert_rounded(out[:, :c], dropped(g.double() - through), scale=size)
        assert not out[:, c:].any()
        assert_rounded(
            norm_backward(g, x, norm, (total, product), 50, out[:, :c], dropout),
            dropped(weight * invstd * (g.double() - of_norm)),
            scale=size,
        )
        assert_rounded(
            norm_backward(g, x, norm, None, 50, out[:, :c], dropout), dropped(weight * invstd * g.double()), scale=size
        )


def test_gradient_passes_where_the_input_is_nan_as_in_pytorch():
    x, norm = features(5, 3, torch.float32), frozen_norm(3)
    x[2, 1] = float("nan")
    grad = torch.ones(5, 3, device=DEVICE)
    sums = NormSums(norm)
    sums.mask(grad, x)
    assert grad[2, 1] == 1
    total, product = sums.result()
    assert total.isfinite().all()
    assert product.isnan().tolist() == [False, True, False]


def test_gradients_of_large_means_are_as_good_as_those_of_pytorch():
    torch.manual_seed(0)
    x = features(600, 24, torch.float32, mean=100.0)
    norm, grad = batch_norm_of(x), numbers(600, 24)
    vectors = (norm.weight, None, None, norm.mean, norm.invstd, True, 0.0, [True, True, True])
    theirs = torch.ops.aten.native_batch_norm_backward(grad, x.contiguous(), *vectors)
    leaf, leaves = x.double().requires_grad_(), as_leaves(norm)
    variance, mean = torch.var_mean(leaf, 0, correction=0)
    result = (leaf - mean) * (variance + 1e-5).rsqrt() * leaves[0] + leaves[1]
    truth = torch.autograd.grad(result, [leaf, *leaves], grad.double())
    sums = NormSums(norm, relu=False)
    sums.mask(grad, x)
    total, product = sums.result()
    mine = norm_backward(grad, x, norm, (total, product), 600, torch.empty_like(grad)), product, total
    for actual, plain, exactly in zip(mine, theirs, truth, strict=True):
        assert relative_error(actual, exactly) < 1.5 * relative_error(plain, exactly) + 2**-24
