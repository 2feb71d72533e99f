"""The traffic of a step against closed forms and enumerated addresses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from commands.benchmark.traffic import bytes_moved, gpu_of, trace_step
from commands.benchmark.variants import Variant, all_variants
from models.buffer.device import capability_of
from models.buffer.kernels.launch import Product, launch
from tests.support.benchmark_cases import BASELINES, SMALL, small, variant, variants

H100 = (9, 0)


class ClosedForm:
    """Bytes and launches of a step of a naive DenseNet-BC in fp32, in a contiguous memory format.

    R rows (pixels of all images), c channels. A GPU normalises in two passes, forward and backward.
    """

    def __init__(self, *, num_layers, growth_rate, num_images, image_size):
        self.bytes = self.launches = 0
        rows, k = num_images * image_size**2, growth_rate
        channels = self.stem(rows, 2 * k)
        for block in range(3):
            features = [channels] + [k] * num_layers
            for layer in range(num_layers):
                read = sum(features[: layer + 1])
                self.cat(rows, read)
                self.norm_relu_convolution(rows, read, 4 * k, taps=1)
                self.norm_relu_convolution(rows, 4 * k, k, taps=9)
            channels = sum(features)
            self.cat(rows, channels)
            # Each feature map is read by the layers after the one that makes it, and by the end of the block.
            readers = [num_layers + 1] + [num_layers - i for i in range(num_layers)]
            for width, count in zip(features, readers, strict=True):
                self.count(3 * rows * width * (count - 1), launches=count - 1)
            if block < 2:
                self.norm_relu_convolution(rows, channels, channels // 2, taps=1)
                rows, channels = rows // 4, channels // 2
                self.count((4 + 1) * rows * channels)  # pooling
                self.count((1 + 4) * rows * channels)
        self.norm_relu(rows, channels)
        self.count(rows * channels + num_images * channels)  # average
        self.count(num_images * channels + rows * channels)
        self.classifier_and_loss(num_images, channels, 10)

    def count(self, numbers, launches=1):
        self.bytes += 4 * numbers
        self.launches += launches

    def stem(self, rows, channels):
        x, y, weight = 3 * rows, rows * channels, 27 * channels
        self.count(x + weight + y)
        self.count(y + x + weight)  # the images need no gradient
        return channels

    def cat(self, rows, channels):
        self.count(2 * rows * channels)

    def norm_relu_convolution(self, rows, inputs, outputs, taps):
        self.norm_relu(rows, inputs)
        x, y, weight = rows * inputs, rows * outputs, inputs * outputs * taps
        self.count(x + weight + y)
        self.count((y + weight + x) + (y + x + weight))

    def norm_relu(self, rows, c):
        x = rows * c
        self.count(4)  # counts batches in 64 bits
        self.count((x + 2 * c) + 4 * c + (x + 4 * c) + x)
        self.count((2 * x + 2 * c) + 2 * c + (2 * x + 5 * c) + x)
        self.count(2 * x)  # ReLU
        self.count(3 * x)

    def classifier_and_loss(self, n, channels, classes):
        x, logits, weight, label = n * channels, n * classes, channels * classes, 2 * n  # labels have 64 bits
        self.count(classes + x + weight + logits)
        self.count(logits + x + weight)
        self.count(logits + weight + x)
        self.count(logits + classes)  # gradient of the bias
        self.count(2 * logits)  # log softmax
        self.count(3 * logits)
        self.count(logits + label + 2)  # its mean at the labels, and the sum of weights
        self.count(1 + label + 1 + logits)
        self.count(1)  # the gradient of the loss


@pytest.mark.parametrize(("depth", "growth_rate", "num_images"), [(10, 2, 4), (28, 6, 3)])
def test_traffic_of_naive_is_that_of_the_closed_form(depth, growth_rate, num_images):
    case = small(depth=depth, growth_rate=growth_rate, batch_size=num_images, image_size=32)
    expected = ClosedForm(num_layers=(depth - 4) // 6, growth_rate=growth_rate, num_images=num_images, image_size=32)
    trace = trace_step(variants()[1], case, H100)
    assert variants()[1].memory_format == "contiguous"
    assert (trace.bytes_moved, trace.num_launches) == (expected.bytes, expected.launches)


def test_naive_at_the_size_of_the_papers_largest_bottleneck_network_of_growth_12():
    case = small(depth=100, growth_rate=12, batch_size=64, image_size=32)
    trace = trace_step(variant("naive"), case, H100)
    expected = ClosedForm(num_layers=16, growth_rate=12, num_images=64, image_size=32)
    assert trace.bytes_moved == pytest.approx(22.85e9, abs=0.1e9)
    # In channels_last, slices of 12 channels do not begin and end with sectors, and a weight's gradient is copied.
    assert expected.bytes < trace.bytes_moved < 1.015 * expected.bytes
    assert trace.num_launches == expected.launches + 2 == 1169


def enumerated(tensor):
    """Bytes of all sectors that hold a value of a tensor."""
    indices = torch.cartesian_prod(*(torch.arange(size) for size in tensor.shape)).view(-1, tensor.dim())
    values = tensor.storage_offset() + (indices * torch.tensor(tensor.stride())).sum(1)
    return 32 * len(set((values * tensor.element_size() // 32).tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "first", "last"), [(342, 0, 12), (342, 330, 342), (100, 17, 34), (96, 8, 16)])
def test_slices_of_rows_move_whole_sectors(columns, first, last, dtype):
    rows = torch.empty(67, columns, dtype=dtype)[:, first:last]
    assert bytes_moved(rows) == enumerated(rows)
    images = torch.empty(3, 5, 4, columns, dtype=dtype).permute(0, 3, 1, 2)[:, first:last]
    assert bytes_moved(images) == enumerated(images)


def test_dense_tensors_and_long_rows_move_their_own_bytes_and_repeated_values_are_moved_once():
    x = torch.empty(4, 6, 5, 5)
    assert bytes_moved(x) == bytes_moved(x.transpose(0, 2)) == bytes_moved(x.permute(0, 2, 3, 1)) == x.nbytes
    assert bytes_moved(torch.empty(3, 1).expand(3, 1000)) == 3 * 4
    assert bytes_moved(torch.empty(7, 400)[:, 1:200]) == 7 * 199 * 4
    assert bytes_moved(torch.empty(0, 3)) == 0
    narrow = torch.empty(1000, 3)[:, :2]  # rows share sectors
    assert narrow.nbytes / 2 * 3 - 4 == bytes_moved(narrow)


class Passes(nn.Module):
    """Logits (N, 10) from images, through a function of them."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.function(images.flatten(1)[:, :10].contiguous() * self.scale)


def trace_of(function):
    return trace_step(Variant("passes", "contiguous", lambda network: Passes(function)), SMALL, H100)


def changes(function):
    """Bytes, launches and names of the calls that a function of logits adds to a step."""
    before, after = trace_of(lambda x: x), trace_of(function)
    names = [call.name for call in before.calls]
    added = [call for call in after.calls if not (call.name in names and not names.remove(call.name))]
    assert after.num_launches - before.num_launches == sum(bool(call.kernels) for call in added)
    return after.bytes_moved - before.bytes_moved, added


def beside(function):
    """A function of logits that calls another one and ignores its result."""

    def call(x):
        function(x.detach())
        return x

    return call


@pytest.mark.parametrize(
    ("kind", "function"),
    [("view", lambda x: x.view(2, 2, 10).transpose(0, 1).expand(3, 2, 2, 10)), ("allocation", torch.empty_like)],
)
def test_views_and_allocations_move_nothing(kind, function):
    moved, added = changes(beside(function))
    assert (moved, {call.kind for call in added}) == (0, {"view", kind})


@pytest.mark.parametrize(
    ("name", "function", "numbers"),
    [
        ("copy_", lambda x: torch.empty(4, 10).copy_(x), 2 * 40),
        ("fill_", lambda x: torch.empty(4, 10).fill_(1), 40),
        ("mul_", lambda x: x.mul_(2), 2 * 40),
        ("addcmul", lambda x: torch.addcmul(x, x, torch.empty(10)), 40 + 10 + 40),
        ("mul", lambda x: torch.mul(x, 2, out=torch.empty(4, 10)), 2 * 40),
        ("zeros_like", torch.zeros_like, 40),
        ("sum", lambda x: x.sum(0), 40 + 10),
    ],
)
def test_operands_are_read_and_written_as_the_schema_says(name, function, numbers):
    moved, added = changes(beside(function))
    assert moved == 4 * numbers
    assert [call.name for call in added if call.kernels] == [name]


class Kernel:
    """Stands for a compiled function of Triton; on fake tensors it is never launched."""

    __name__ = "fused"


def test_a_launch_of_our_kernels_counts_with_its_operands_once_and_its_product():
    def function(x):
        out = torch.empty(4, 20)
        launch(Kernel(), (1,), reads=[x, x], writes=[out[:, :10]], repeats=[(x, 7)], product=Product(4, 10, 10))

    moved, added = changes(beside(function))
    assert moved == 4 * 40 + bytes_moved(torch.empty(4, 20)[:, :10])
    (call,) = [call for call in added if call.kernels]
    assert (call.name, call.kind) == ("fused", "triton")
    assert call.kernels[0].repeated == 7 * 160
    assert call.kernels[0].product == (4, 10, 10)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_products_have_the_size_and_the_flops_of_the_networks_convolutions(precision):
    case = replace(SMALL, precision=precision)
    trace = trace_step(variant("naive"), case, H100)
    kernels = [kernel for kind, kernel in trace.kernels if kind.startswith("convolution")]
    assert {kernel.itemsize for kernel in kernels} == {2 if precision.endswith("16") else 4}
    # L=10, k=2, 4 images of 8x8: convolutions of three blocks with one layer each, and of two transitions. Their
    # gradients cost as much as they do, twice; the first convolution needs only that of its weight.
    first = 256 * 4 * 27
    layers = [(256, 4), (64, 3), (16, 2)]
    others = sum(rows * (c * 8 + 72 * 2) for rows, c in layers) + 256 * 6 * 3 + 64 * 5 * 2
    assert sum(kernel.product.flops for kernel in kernels) == 2 * (2 * first + 3 * others)


def test_a_trace_is_the_same_on_all_devices_and_leaves_nothing_behind():
    x = torch.empty(0)
    on_cpu = trace_step(variant("buffer"), SMALL, H100)
    assert capability_of(x) is None
    assert trace_step(variant("buffer"), replace(SMALL, device=torch.device("cuda", 0)), H100) == on_cpu
    assert gpu_of(x.device) == H100


def test_callers_are_told_apart():
    calls = {name: trace_step(variant(name), SMALL, H100).calls for name in ("naive", "checkpoint", "buffer")}
    assert {call.caller for call in calls["naive"]} == {"autograd", "engine"}
    first, *others = [call.caller for call in calls["buffer"] if call.kind in ("convolution", "triton")]
    assert (first, set(others)) == ("autograd", {"python"})
    assert {call.caller for call in calls["checkpoint"] if call.name == "cat"} == {"autograd"}  # twice each


def test_torchvisions_network_moves_what_naive_does_and_recomputing_moves_more():
    traces = {one.name: trace_step(one, SMALL, H100) for one in variants() if one.memory_format == "channels_last"}
    moved = {name: (trace.bytes_moved, trace.num_launches) for name, trace in traces.items()}
    naive = moved.pop("naive")
    assert moved.pop("torchvision") == naive
    for name in ("checkpoint", *BASELINES[1:]):
        assert moved[name] > naive


@pytest.mark.parametrize(
    ("memory_format", "changes"),
    [("contiguous", {"precision": "bf16"}), ("channels_last", {"precision": "fp16", "drop_rate": 0.2})],
)
def test_half_of_the_bytes_move_in_half_precision(memory_format, changes):
    """Weights, their gradients, dropout masks and vectors of norms keep their size; feature maps have half of it."""
    case = small(**changes, batch_size=64, growth_rate=16)
    for one in all_variants(case.network, memory_format=memory_format, with_compile=False):
        if one.name in ("naive", "buffer") and one.memory_format == memory_format:
            in_fp32 = trace_step(one, replace(case, precision="fp32"), H100).bytes_moved
            assert 0.5 < trace_step(one, case, H100).bytes_moved / in_fp32 < 0.75
