"""What passes read and write; and that equal launches give equal bits."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.buffer.dropout import Dropout
from models.buffer.kernels.backward import NormSums, finish_gradient, norm_backward
from models.buffer.kernels.forward import Moments, activate, activate_and_average, activate_and_pool
from models.buffer.kernels.launch import recorded
from tests.support.kernel_rows import batch_norm_of, features, in_buffer, numbers
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS

SHAPE = N, H, W = 2, 6, 8
R, C, K = N * H * W, 20, 12


def moments(x, norm, grad):
    parts = Moments()
    parts.add(x)
    return parts.result(1e-5)


def moments_with_dropout(x, norm, grad):
    parts = Moments()
    mask = torch.ones(R, C, dtype=torch.bool, device=x.device)
    parts.add(x, Dropout(0.5, mask), out=grad)
    return [grad, *parts.result(1e-5)]


def added(x, norm, grad, **settings):
    sums, gradients = NormSums(norm), torch.ones_like(x)
    sums.add_to(gradients, grad, x, **settings)
    collected = x.new_zeros(C), x.new_zeros(C)
    return [gradients, *sums.result(collected), *collected]


def added_pooled(x, norm, grad):
    sums, gradients = NormSums(norm), torch.ones_like(x)
    sums.add_pooled_to(gradients, grad[: R // 4], x, SHAPE)
    return [gradients, *sums.result()]


def added_averaged(x, norm, grad):
    sums, gradients = NormSums(norm), torch.ones_like(x)
    sums.add_averaged_to(gradients, grad[:N], x, SHAPE)
    return [gradients, *sums.result()]


def masked(x, norm, grad):
    sums = NormSums(norm)
    sums.mask(grad, x)
    return [grad, *sums.result()]


VECTORS = 4 * C  # of a norm
OPERATIONS = {
    # Numbers that are read and written, without partial sums, which depend on the number of programs.
    "activate": (lambda x, norm, _: activate(x, norm, x.new_empty(R, 32)), R * C + VECTORS, R * 32),
    "pool": (
        lambda x, norm, _: activate_and_pool(x, norm, SHAPE, x.new_empty(R // 4, 32)),
        R * C + VECTORS,
        R // 4 * 32,
    ),
    "average": (lambda x, norm, _: activate_and_average(x, norm, SHAPE), R * C + VECTORS, N * C),
    "moments": (moments, R * C, 3 * C),
    "moments with dropout": (moments_with_dropout, 2 * R * C, R * C + 3 * C),
    "add to gradients": (added, 3 * R * C + VECTORS + 4 * C, R * C + 4 * C),
    "write gradients": (lambda *a: added(*a, is_first=True), 2 * R * C + VECTORS + 4 * C, R * C + 4 * C),
    "add pooled gradients": (added_pooled, (2 * R + R // 4) * C + VECTORS + 2 * C, R * C + 2 * C),
    "add averaged gradients": (added_averaged, (2 * R + N) * C + VECTORS + 2 * C, R * C + 2 * C),
    "mask": (masked, 2 * R * C + VECTORS + 2 * C, R * C + 2 * C),
    "gradient of a norm": (
        lambda x, norm, grad: norm_backward(grad, x, norm, (norm.mean, norm.bias), R, grad),
        2 * R * C + 5 * C,
        R * C,
    ),
    "gradient of a frozen norm": (
        lambda x, norm, grad: norm_backward(grad, x, norm, None, R, grad),
        R * C + 3 * C,
        R * C,
    ),
    "gradient of new channels": (
        lambda x, norm, grad: finish_gradient(
            grad[:, :K], x[:, :K], norm.mean[:K], (norm.bias[:K], norm.weight[:K]), R, x.new_empty(R, 16)
        ),
        2 * R * K + 3 * K,
        R * 16,
    ),
}
EVERY_OPERATION = pytest.mark.parametrize(("operation", "num_read", "num_written"), OPERATIONS.values(), ids=OPERATIONS)


@EVERY_OPERATION
def test_launches_on_fake_tensors_say_what_they_read_and_write(operation, num_read, num_written):
    launches = []
    with FakeTensorMode(), recorded(launches.append):
        x = torch.empty(R, 32, device=DEVICE)[:, :C]
        operation(x, batch_norm_of(x), torch.empty(R, C, device=DEVICE))
    joins = [launch for launch in launches if launch.name.startswith("join_")]
    assert len(launches) - len(joins) == 1
    assert len(joins) <= 1
    numel = Counter()
    for launch in launches:
        parts = launch.writes[-1:] if launch not in joins and joins else launch.reads[:1] if launch in joins else ()
        of_parts = {id(part) for part in parts}
        numel["read"] += sum(tensor.numel() for tensor in launch.reads if id(tensor) not in of_parts)
        numel["written"] += sum(tensor.numel() for tensor in launch.writes if id(tensor) not in of_parts)
    assert numel == {"read": num_read, "written": num_written}


@EVERY_OPERATION
def test_equal_launches_give_equal_bits(operation, num_read, num_written):
    torch.manual_seed(0)
    x, grad = features(R, C, torch.float32), in_buffer(numbers(R, C))
    norm = batch_norm_of(x)
    first, second = (operation(x, norm, grad.clone()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
