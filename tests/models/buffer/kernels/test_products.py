"""Fused products of a bottleneck layer, against autograd in float64."""

import math
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.buffer.dropout import Dropout
from models.buffer.kernels import products, table
from models.buffer.kernels.launch import recorded
from models.buffer.kernels.products import Bottleneck, Convolution, Inputs
from models.buffer.norms import ChannelNorm, Statistics
from models.buffer.parameters import DenseLayerParameters
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS

EPS = 1e-3
SPLIT = table.Blocks(rows=32, warps=4, stages=1)


class Case(NamedTuple):
    """A layer: shape (N, H, W), channels, whether each norm is frozen, rates of dropout, and the kernels."""

    shape: tuple[int, int, int] = (2, 5, 7)
    c: int = 17
    b: int = 20
    k: int = 5
    frozen: tuple[bool, bool] = (False, False)
    keep_rates: tuple[float, float] = (1, 1)
    is_split: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    mean: float = 0.5


CASES = {
    "odd sizes": Case(),
    "k=12": Case(c=29, b=48, k=12, memory_format=torch.channels_last),
    "dropout": Case((1, 5, 7), c=29, b=48, k=12, keep_rates=(0.8, 0.6)),
    "frozen norms": Case((2, 4, 4), frozen=(True, True)),
    "frozen second norm, split": Case((1, 4, 4), frozen=(False, True), keep_rates=(0.7, 1), is_split=True),
    "split": Case((1, 5, 7), c=33, b=64, k=17, is_split=True),
    "many parts": Case((2, 7, 9), c=16, b=16, k=16),
    "one channel, large means": Case((2, 3, 3), c=1, b=1, k=1, mean=30),
}


class Layer(NamedTuple):
    """Tensors of a case, all of float32 but for x, the gradient G before, and that of the result."""

    case: Case
    x: Tensor  # (N, c, H, W)
    grad: Tensor  # (N, c, H, W)
    dy: Tensor  # (N, k, H, W)
    weights: tuple[Tensor, ...]  # gamma1, beta1, W1, gamma2, beta2, W2
    running: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    kept: tuple[Tensor | None, Tensor | None]  # masks (R, b) and (R, k)


def numbers(*size: int) -> Tensor:
    return torch.randn(size)


def layer_of(case: Case, dtype: torch.dtype) -> Layer:
    torch.manual_seed(0)
    (n, height, width), c, b, k = case.shape, case.c, case.b, case.k
    weights = (
        *(1 + 0.3 * numbers(c), 0.3 * numbers(c), numbers(b, c, 1, 1) * (2 / c) ** 0.5),
        *(1 + 0.3 * numbers(b), 0.3 * numbers(b), numbers(k, b, 3, 3) * (2 / 9 / b) ** 0.5),
    )
    weights = (*weights[:5], weights[5].contiguous(memory_format=case.memory_format))
    running = tuple((case.mean + 0.3 * numbers(size), 0.5 + torch.rand(size)) for size in (c, b))
    size, rows = (n, c, height, width), n * height * width
    kept = tuple(
        torch.rand(rows, size) < rate if rate < 1 else None for size, rate in zip((b, k), case.keep_rates, strict=True)
    )
    x = (case.mean + numbers(*size)).to(dtype)
    return Layer(case, x, numbers(*size).to(dtype), numbers(n, k, height, width).to(dtype), weights, running, kept)


def as_rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def as_images(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    n, height, width = shape
    return rows.reshape(n, height, width, -1).permute(0, 3, 1, 2)


def plain(layer: Layer, dtype: torch.dtype) -> dict[str, Tensor]:
    """The plain network's layer and its gradients; bfloat16 and float16 as under autocast."""
    case = layer.case
    autocast = dtype in (torch.bfloat16, torch.float16)
    x = layer.x.to(dtype).requires_grad_()
    weights = [w.to(torch.float32 if autocast else dtype).requires_grad_() for w in layer.weights]
    gamma1, beta1, w1, gamma2, beta2, w2 = weights

    def norm(maps, index, gamma, beta):
        mean, variance = (value.to(gamma.dtype) for value in layer.running[index])
        statistics = (mean, variance) if case.frozen[index] else (None, None)
        return F.relu(F.batch_norm(maps, *statistics, gamma, beta, not case.frozen[index], eps=EPS))

    def drop(maps, index):
        kept = layer.kept[index]
        return maps if kept is None else maps * as_images(kept, case.shape) / case.keep_rates[index]

    with torch.autocast("cpu", dtype) if autocast else nullcontext():
        z = drop(F.conv2d(norm(x, 0, gamma1, beta1), w1), 0)
        y = drop(F.conv2d(norm(z, 1, gamma2, beta2), w2, padding=1), 1)
    y.backward(layer.dy.to(y.dtype))
    names = DenseLayerParameters(*(w.grad for w in weights))._asdict()
    return {"y": y.detach(), "x": x.grad + layer.grad.to(x.grad.dtype), **names}


def fused(layer: Layer, *, is_kept: bool = False) -> dict[str, Tensor]:
    """The same by kernels, in a buffer where everything that has no meaning is NaN."""
    case, dtype = layer.case, layer.x.dtype
    device = lambda tensor: tensor if tensor is None else tensor.to(DEVICE)  # noqa: E731
    num_rows, c, b, k = case.shape[0] * case.shape[1] * case.shape[2], case.c, case.b, case.k
    pitch = -(-(c + k) // 16) * 16
    x, grad = (torch.full((num_rows, pitch), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
    x[:, :c] = as_rows(layer.x)
    grad[:, :c] = as_rows(layer.grad)
    plan = table.plan((9, 0), dtype, b, k)
    assert plan is not None
    plan = plan._replace(backward_1x1_weight=SPLIT if case.is_split else None)
    gamma1, beta1, w1, gamma2, beta2, w2 = map(device, layer.weights)
    dropout = [Dropout(rate, device(kept)) for kept, rate in zip(layer.kept, case.keep_rates, strict=True)]

    def norm(index, mean, invstd, gamma, beta):
        if not case.frozen[index]:
            return ChannelNorm(mean, invstd, gamma, beta)
        mean, variance = map(device, layer.running[index])
        return ChannelNorm(mean, (variance + EPS).rsqrt(), gamma, beta, (mean, variance))

    variance, mean = torch.var_mean(x[:, :c].double(), 0, correction=0)
    first = Convolution(norm(0, mean.float(), (variance + EPS).rsqrt().float(), gamma1, beta1), w1, dropout[0])
    z = torch.full((num_rows, b), torch.nan, dtype=dtype, device=DEVICE)
    of_z = products.bottleneck(x[:, :c], first, plan, eps=EPS, out=z)
    second = Convolution(norm(1, of_z.mean, of_z.invstd, gamma2, beta2), w2, dropout[1])
    new = x[:, c : c + k]
    of_new = Statistics(*torch.empty(3, k, device=DEVICE))
    assert products.new_maps(z, second, case.shape, plan, eps=EPS, out=new, statistics=of_new) is of_new
    assert_statistics(of_new, new)
    assert_statistics(of_z, z)
    dy = as_rows(layer.dy)
    if layer.kept[1] is not None:
        dy = torch.where(layer.kept[1], dy.double() / case.keep_rates[1], 0).to(dtype)
    padded = torch.full((num_rows, table._power_of_two(k)), torch.nan, dtype=dtype, device=DEVICE)
    padded[:, :k] = dy
    collected = torch.zeros(2, c + k, device=DEVICE)
    kept_z = z.clone() if is_kept else torch.full_like(z, torch.nan)
    of_z = Bottleneck(kept_z, torch.full_like(z, torch.nan), is_kept)
    x_before = x.clone()
    inputs = Inputs(x[:, :c], grad[:, :c], tuple(collected))
    gradients = products.backward(padded, inputs, of_z, first, second, case.shape, plan)
    assert torch.equal(x.nan_to_num(), x_before.nan_to_num())
    assert torch.equal(kept_z, z)
    assert gradients.conv2_weight.stride() == w2.stride()
    assert not collected[:, c:].any()
    assert grad[:, -(-c // 16) * 16 :].isnan().all()
    a, d = collected[:, :c].double() / num_rows
    dx = grad[:, :c].double() - a - (x[:, :c].double() - first.norm.mean.double()) * d
    result = {"y": as_images(new, case.shape), "x": as_images(dx, case.shape), **gradients._asdict()}
    return {name: value.cpu() for name, value in result.items()}


def assert_statistics(statistics: Statistics, rows: Tensor) -> None:
    variance, mean = torch.var_mean(rows.double(), 0, correction=0)
    torch.testing.assert_close(statistics.mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.invstd.double(), (variance + EPS).rsqrt(), rtol=2e-6, atol=1e-10)
    torch.testing.assert_close(statistics.unbiased.double(), rows.double().var(0), rtol=2e-6, atol=1e-10)


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each tensor, in norm."""
    return {
        name: ((actual[name].double() - value.double()).norm() / value.double().norm()).item()
        for name, value in expected.items()
    }


@pytest.fixture(autouse=True)
def several_parts(monkeypatch):
    """Sum over few rows, so that small shapes have several parts."""
    monkeypatch.setattr(products, "FEWEST_ROWS", 64)
    monkeypatch.setattr(products, "MOST_PARTS", 3)


@pytest.fixture(autouse=True)
def exact_products():
    """Multiply float32 as float32; a setting of TF32 has no effect in the interpreter, but on a GPU."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32_is_as_good_as_the_plain_network(case):
    layer = layer_of(case, torch.float32)
    truth = plain(layer, torch.float64)
    actual, expected = errors(fused(layer), truth), errors(plain(layer, torch.float32), truth)
    assert all(actual[name] < 2 * expected[name] + 1e-7 for name in truth), (actual, expected)


@pytest.mark.parametrize("name", ["k=12", "dropout", "frozen second norm, split"])
def test_bfloat16_is_as_good_as_the_plain_network_under_autocast(name):
    layer = layer_of(CASES[name], torch.bfloat16)
    truth = plain(layer, torch.float64)
    actual, expected = errors(fused(layer), truth), errors(plain(layer, torch.bfloat16), truth)
    # Few numbers are rounded in so small a layer, so that errors of single results differ by chance.
    assert all(actual[name] < 1.25 * expected[name] for name in truth), (actual, expected)
    assert math.hypot(*actual.values()) < 1.1 * math.hypot(*expected.values())


def test_equal_steps_give_equal_bits_and_so_does_a_bottleneck_that_is_kept():
    layer = layer_of(Case((1, 4, 5), c=9, b=13, k=3, keep_rates=(0.7, 0.7)), torch.float32)
    once, again, kept = fused(layer), fused(layer), fused(layer, is_kept=True)
    assert all(torch.equal(once[name], again[name]) and torch.equal(once[name], kept[name]) for name in once)


def test_weights_of_16_bits_give_what_the_same_numbers_in_32_bits_give():
    layer = layer_of(CASES["one channel, large means"], torch.bfloat16)
    gamma1, beta1, w1, gamma2, beta2, w2 = layer.weights
    short = layer._replace(weights=(gamma1, beta1, w1.bfloat16(), gamma2, beta2, w2.bfloat16()))
    long = layer._replace(weights=(gamma1, beta1, w1.bfloat16().float(), gamma2, beta2, w2.bfloat16().float()))
    of_short, of_long = fused(short), fused(long)
    assert all(torch.equal(of_short[name], of_long[name]) for name in of_long)


def test_nan_is_not_hidden_by_relu():
    x = torch.ones(4, 3, device=DEVICE)
    x[2, 1] = torch.nan
    norm = ChannelNorm(*torch.ones(4, 3, device=DEVICE))
    plan = table.plan((9, 0), torch.float32, 2, 1)
    z = torch.empty(4, 2, device=DEVICE)
    products.bottleneck(x, Convolution(norm, torch.ones(2, 3, 1, 1, device=DEVICE)), plan, eps=EPS, out=z)
    assert z.isnan().all(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("is_split", "is_kept"), [(False, False), (True, False), (False, True)])
def test_traffic_and_launches_of_a_layer(is_split, is_kept, monkeypatch):
    monkeypatch.undo()
    shape, c, b, k = (64, 32, 32), 204, 48, 12
    num_rows = 64 * 32 * 32
    with FakeTensorMode():
        launches = launches_of(shape, c, b, k, is_split=is_split, is_kept=is_kept)
    assert len(launches) == 10 + is_split
    moved = sum(tensor.numel() * tensor.element_size() for launch in launches for tensor in of_rows(launch, num_rows))
    forward = c + 2 * b + k
    backward = (k + (2 * b if is_kept else c + 2 * b)) + (k + b) + (2 * b + 3 * c)
    if is_split:
        backward += 2 * b + c
    assert moved == 4 * num_rows * (forward + backward)


def launches_of(shape, c, b, k, *, is_split, is_kept):
    """Launches of both passes of a layer on fake tensors."""
    num_rows, launches = shape[0] * shape[1] * shape[2], []
    rows = lambda width: torch.empty(num_rows, width)  # noqa: E731
    norm = lambda width: ChannelNorm(*torch.empty(4, width))  # noqa: E731
    first, second = (
        Convolution(norm(c), torch.empty(b, c, 1, 1)),
        Convolution(norm(b), torch.empty(k, b, 3, 3)),
    )
    plan = table.plan((9, 0), torch.float32, b, k)._replace(backward_1x1_weight=SPLIT if is_split else None)
    x, z, grad_z = rows(256)[:, :c], rows(b), rows(b)
    with recorded(launches.append):
        products.bottleneck(x, first, plan, eps=EPS, out=z)
        products.new_maps(z, second, shape, plan, eps=EPS, out=rows(k))
        inputs = Inputs(x, rows(256)[:, :c], (torch.empty(c), torch.empty(c)))
        products.backward(rows(16), inputs, Bottleneck(z, grad_z, is_kept), first, second, shape, plan)
    return launches


def of_rows(launch, num_rows):
    return (tensor for tensor in (*launch.reads, *launch.writes) if tensor.shape[0] == num_rows)
