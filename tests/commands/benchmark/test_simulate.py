"""The model of a GPU's time: by hand for single kernels, and against published times of whole steps."""

import pytest

from commands.benchmark.gpus import GPUS, Gpu
from commands.benchmark.simulate import Workload, middle_of, predict
from commands.benchmark.traffic import Call, Kernel, Operand, Trace, trace_step
from models.buffer.kernels.launch import Product
from tests.support.benchmark_cases import small, variants

# Round numbers: 1,000 bytes or 1,000,000 operations in a microsecond, and 100 bytes in cache.
ROUND = Gpu(
    title="Round",
    capability=(8, 0),
    bandwidth=2,
    cache=125e-6,
    multiprocessors=4,
    fp32=1 / 0.72,
    tf32=10 / 0.60,
    half=20 / 0.60,
    memory_share=0.5,
    cache_bandwidth=10,
    clock_share=1,
    gap=5,
    graph_gap=3,
)


def call(kind="elementwise", *, reads=(), writes=(), caller="python", **of_kernel):
    operands = [tuple(Operand(storage, 0, nbytes) for storage, nbytes in side) for side in (reads, writes)]
    return Call("some", kind, caller, (Kernel(*operands, **of_kernel),))


def device_time(*calls, precision="fp32"):
    """Microseconds of some calls in a graph, without what the graph itself takes."""
    return 1e3 * Workload(Trace(calls)).time_on(ROUND, precision).graph - 20


def test_a_pass_takes_its_bytes_over_the_bandwidth_and_the_gap():
    assert device_time(call(reads=[(0, 4000)], writes=[(1, 3000)])) == pytest.approx(3 + 7)
    assert device_time(call("pooling", reads=[(0, 6000)])) == pytest.approx(3 + 10)


def test_what_was_used_shortly_before_comes_from_the_cache():
    once = call(reads=[(0, 60)])
    assert device_time(once, once) == pytest.approx(2 * 3 + 0.06 + 0.006)
    # 50 other bytes in between are too many: the cache holds 0.8 of 125.
    between = call(reads=[(1, 50)])
    assert device_time(once, between, once) == pytest.approx(3 * 3 + 0.06 + 0.05 + 0.06)
    assert device_time(call(reads=[(0, 60)], repeated=1000)) == pytest.approx(3 + 0.06 + 0.1)


def test_a_product_takes_its_operations_over_the_rate_of_its_precision():
    product = Product(128, 64 * 4, 64)  # four tiles for four multiprocessors
    microseconds = 2 * 128 * 256 * 64 / 1e6

    def time(precision="fp32", kind="convolution", itemsize=4):
        return device_time(call(kind, product=product, itemsize=itemsize), precision=precision) - 3

    assert time() == pytest.approx(2 + microseconds)
    assert time("tf32") == pytest.approx(2 + microseconds / 10)
    assert time("bf16", itemsize=2) == pytest.approx(2 + microseconds / 20)
    # Our kernels reach half the rate, and compute in fp32 with three products in TF32.
    assert time("tf32", kind="triton") == pytest.approx(1.5 + 2 * microseconds / 10)
    assert time(kind="triton") == pytest.approx(1.5 + 6 * microseconds / 10)


@pytest.mark.parametrize(
    ("product", "used"),
    [
        (Product(128 * 5, 64, 64), 5 / 8),  # a second wave of one tile
        (Product(128 * 4, 12, 64), 12 / 32),  # columns that stick out
        (Product(128 * 4, 64, 9), 9 / 16),  # steps of 8
        (Product(32, 48, 10_000), 48 / 64),  # the gradient of a weight is divided among all
    ],
)
def test_tiles_that_are_not_full_compute_in_vain(product, used):
    time = device_time(call("convolution", product=product)) - 3 - 2
    assert time == pytest.approx(product.flops / 1e6 / used)


def test_the_longer_one_of_moving_and_computing_counts_with_a_part_of_the_other():
    both = call("product", reads=[(0, 8000)], product=Product(128, 256, 64))
    assert device_time(both) == pytest.approx(3 + 1 + 10 + 0.15 * 2 * 128 * 256 * 64 / 1e6)


def test_a_step_takes_as_long_as_the_slower_one_of_host_and_device():
    small_calls = [call(reads=[(i, 8)]) for i in range(100)]
    time = Workload(Trace(tuple(small_calls))).time_on(ROUND, "fp32")
    assert time.eager == pytest.approx(100 * 5.5 / 1e3)
    assert time.graph == pytest.approx((100 * 3.008 + 20) / 1e3)
    views = tuple(Call("view", "view", "engine") for _ in range(200))
    assert Workload(Trace((*small_calls, *views))).time_on(ROUND, "fp32").eager == pytest.approx(0.55 + 0.18)
    large = Workload(Trace((call(reads=[(0, 10**6)]),))).time_on(ROUND, "fp32")
    assert large.eager == pytest.approx(1.005)


def test_predictions_repeat_and_their_interval_is_never_narrower_than_published_times_were_missed():
    trace = Trace((call("norm", reads=[(0, 10**9)]), call("triton", product=Product(1000, 48, 200))))
    one, other = (predict(trace, GPUS["a100"], "tf32") for _ in range(2))
    assert one == other
    low, high = one.interval
    assert low <= 0.65 * one.time.eager
    assert high >= 1.35 * one.time.eager
    assert len({draw.eager for draw in one.draws}) > 50
    assert middle_of([float(value) for value in range(11)]) == (1, 9)


def test_precisions_that_a_gpu_does_not_have_are_none():
    has = {name: [p for p in ("fp32", "tf32", "bf16", "fp16") if gpu.rate(p)] for name, gpu in GPUS.items()}
    assert has.pop("t4") == ["fp32", "fp16"]
    assert all(len(precisions) == 4 for precisions in has.values())


def test_published_times_of_a_gtx_1080_ti_are_met():
    """github.com/wandering007/efficient-densenet-pytorch names 115.9 ms for naive and 141.5 ms with checkpoints."""
    gpu = Gpu("GTX 1080 Ti", (6, 1), 484, 2.75, 28, 11.3, None, 11.3, 0.78, 1100, 0.95, 3.0, 2.2)
    case = small(depth=76, growth_rate=12, batch_size=128, image_size=32)
    naive, checkpoint = (predict(trace_step(variants()[i], case, (6, 1)), gpu, "fp32") for i in (1, 2))
    assert naive.time.eager == pytest.approx(115.9, rel=0.1)
    assert checkpoint.time.eager == pytest.approx(141.5, rel=0.1)
    assert checkpoint.interval[0] < 141.5 < checkpoint.interval[1]
