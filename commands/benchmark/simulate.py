"""A model of the time that a traced step takes on a GPU. It predicts; nothing here was measured on a GPU.

Device: kernels run one after the other. A kernel takes the gap between kernels, plus the time of its bytes or of its
product, whichever is longer. Bytes come from the cache if what was moved since their last use fits into it, and from
memory otherwise. Host: every call costs a time that depends on what it is and on who calls it. Host and device work at
the same time, so that a step in the middle of many takes as long as the slower of the two. A CUDA graph costs the host
next to nothing, and leaves smaller gaps.

The constants are guesses. They were compared with published times of DenseNets, and after a first comparison two were
raised, the shares of their peak rates that products reach; so the agreement is partly a fit. The model gives now:

    case                                                            published         model
    GTX 1080 Ti, L=76 k=12, batch 128, naive                        115.9 ms          116.6
    the same with checkpoints (github.com/wandering007)             141.5 ms          137.5
    GTX 1080 Ti, DenseNet-161, batch 16 (github.com/u39kun)         211.9 ms          225
    V100, the same                                                  142.5 ms          154
    RTX 3090, fp16, DenseNet-121, 169, 201, 161 (timm)              914, 753, 563 and 399 images in a second,
      batch not published; 128 in the model                         754, 616, 475 and 331
    A100, fp16, DenseNet-121, batch 4, eager / graph                2.8               3.6
      (pytorch issue 96191; compiled)

An older measurement was missed: a Titan X with PyTorch 0.1 took 1.8 times as long. Times of the host are within a
factor of 2. Ratios between strategies are better known than times, because most faults of the model are common to them:
`predict` draws all guesses anew many times, and the interval that it gives holds 80 % of the results.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from commands.benchmark.gpus import Gpu
from commands.benchmark.traffic import Trace

Array = np.ndarray

NUM_DRAWS = 60
SEED = 0
ABSOLUTE_ERROR = 0.35  # more than the differences above, to which the constants were fitted in part

# Host time of a call in microseconds: C++ dispatch, allocation of results, launch. "autograd" has the module's call and
# the graph's node on top. On a CPU with tensors so small that they take no time, steps of naive and buffer took 15 and
# 39 ms at L=100, where these summed up to 18 and 38. A launch by Triton took 18 microseconds in 2024 (triton issue
# 3648), and 11 and 8.7 later on faster hosts.
HOST = {
    "view": {"autograd": 2.5, "python": 1.6, "engine": 0.9},
    "allocation": {"autograd": 2.5, "python": 2.0, "engine": 1.2},
    "elementwise": {"autograd": 9.0, "python": 5.5, "engine": 6.0},
    "cat": {"autograd": 14.0, "python": 10.0, "engine": 10.0},
    "convolution": {"autograd": 26.0, "python": 20.0, "engine": 20.0},
    "convolution backward": {"autograd": 35.0, "python": 36.0, "engine": 39.0},
    "norm": {"autograd": 30.0, "python": 14.0, "engine": 18.0},
    "foreach": {"autograd": 10.0, "python": 10.0, "engine": 10.0},
    "triton": {"autograd": 16.0, "python": 16.0, "engine": 16.0},
}
HOST_AS = {"broadcast": "elementwise", "pooling": "elementwise", "product": "convolution"}
GRAPH_LAUNCH = 20.0  # microseconds for a whole graph

# Bandwidth by kind of call, as a share of that of a large copy.
ACCESS = {
    "elementwise": 1.0,
    "foreach": 1.0,
    "broadcast": 0.85,
    "cat": 0.85,
    "norm": 0.7,
    "convolution": 0.8,
    "convolution backward": 0.8,
    "product": 0.8,
    "pooling": 0.6,
    "triton": 0.75,
}
# Microseconds that a kernel of a kind takes longer to begin and end: it fills a pipeline, or joins partial sums.
RAMP = {"convolution": 2.0, "convolution backward": 3.0, "product": 1.0, "norm": 0.75, "foreach": 2.0, "triton": 1.5}

CACHE_SHARE = 0.8  # of the cache that holds what was used last
OVERLAP_LOSS = 0.15  # of the shorter one of moving and computing, which do not overlap completely
FMA_SHARE, TENSOR_SHARE = 0.72, 0.60  # of their peak rates that large products of cuDNN reach
TRITON_SHARE = 0.5  # of cuDNN's rate that products of our kernels reach
TF32_PASSES = 3  # with which our kernels compute a product in fp32 on tensor cores
SMALLEST_WAVE = 0.15  # of the device that a product keeps busy, however few tiles it has


@dataclass(frozen=True)
class Guesses:
    """Factors by which the constants of the model are multiplied.

    Attributes:
        memory: Of the bandwidth of memory.
        cache: Of the size of the cache.
        cache_bandwidth: Of its bandwidth.
        gap: Of the gaps between kernels.
        rate: Of the rates of all products.
        triton_rate: Of those of our kernels, once more.
        access: Of ACCESS, by kind of call.
        host: Of HOST, by kind of call.
    """

    memory: float = 1.0
    cache: float = 1.0
    cache_bandwidth: float = 1.0
    gap: float = 1.0
    rate: float = 1.0
    triton_rate: float = 1.0
    access: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACCESS, 1.0))
    host: dict[str, float] = field(default_factory=lambda: dict.fromkeys(HOST, 1.0))

    @classmethod
    def drawn(cls, generator: random.Random) -> "Guesses":
        """Draw all of them. The factor of the host is the widest: processors and versions of Python differ most."""
        draw = generator.uniform
        host = draw(0.7, 2.5)
        of_kinds = {kind: host * draw(0.7, 1.4) for kind in HOST}
        return cls(
            memory=draw(0.9, 1.06),
            cache=draw(0.4, 1.1),
            cache_bandwidth=draw(0.6, 1.2),
            gap=draw(0.65, 1.6),
            rate=draw(0.5, 1.1) * draw(0.8, 1.15),
            triton_rate=draw(0.5, 1.6),
            access={kind: draw(0.8, 1.2) for kind in ACCESS},
            host=of_kinds | {"triton": of_kinds["triton"] * draw(0.6, 1.6)},
        )


NOMINAL = Guesses()


class StepTime(NamedTuple):
    """Milliseconds of a step.

    Attributes:
        eager: Where Python launches every kernel.
        graph: In a CUDA graph.
    """

    eager: float
    graph: float


class Workload:
    """The kernels of a trace as arrays, so that many predictions of its time are cheap.

    K kernels, P operands of all kernels together.

    Args:
        trace: The step.
    """

    def __init__(self, trace: Trace):
        kernels = trace.kernels
        self.kinds = np.array([kind for kind, _ in kernels])
        self.is_half = np.array([kernel.itemsize == 2 for _, kernel in kernels])
        self.repeated = np.array([float(kernel.repeated) for _, kernel in kernels])
        # A kernel without a product computes an empty one.
        self.products = np.array([kernel.product or (1, 1, 0) for _, kernel in kernels], dtype=float).T  # m, n, k
        operands = np.array([*_with_distances(trace)], dtype=float).reshape(-1, 3)  # (P, 3)
        self.kernel_of = operands[:, 0].astype(int)
        self.sizes, self.distances = operands[:, 1], operands[:, 2]
        self.host: dict[str, float] = dict.fromkeys(HOST, 0.0)  # microseconds by kind of call
        for call in trace.calls:
            kind = HOST_AS.get(call.kind, call.kind)
            self.host[kind] += HOST[kind][call.caller]

    def time_on(self, gpu: Gpu, precision: str, guesses: Guesses = NOMINAL) -> StepTime:
        """Predict the time of a step.

        Args:
            gpu: The GPU.
            precision: "fp32", "tf32", "bf16" or "fp16", which the GPU has.
            guesses: Other constants than usual.
        """
        busy = self._moving_and_computing(gpu, precision, guesses)
        ramps = self._by_kind({kind: RAMP.get(kind, 0.0) for kind in ACCESS}).sum()
        gaps = [len(busy) * guesses.gap * gap + ramps for gap in (gpu.gap, gpu.graph_gap)]
        eager, graph = (busy.sum() + gap for gap in gaps)
        host = sum(guesses.host[kind] * time for kind, time in self.host.items())
        return StepTime(max(eager, host) / 1e3, (graph + GRAPH_LAUNCH) / 1e3)

    def _moving_and_computing(self, gpu: Gpu, precision: str, guesses: Guesses) -> Array:
        """Microseconds (K,) of each kernel, without gaps."""
        capacity = gpu.cache * 1e6 * CACHE_SHARE * guesses.cache
        is_hit = self.distances + self.sizes <= capacity
        hits = np.bincount(self.kernel_of, self.sizes * is_hit, len(self.kinds)) + self.repeated
        misses = np.bincount(self.kernel_of, self.sizes * ~is_hit, len(self.kinds))
        share = np.minimum(1, self._by_kind({kind: guesses.access[kind] * share for kind, share in ACCESS.items()}))
        memory = gpu.bandwidth * gpu.memory_share * guesses.memory * 1e3  # bytes in a microsecond
        cache = gpu.cache_bandwidth * guesses.cache_bandwidth * 1e3
        moving = (misses / memory + hits / cache) / share
        m, n, k = self.products
        computing = 2e-6 * m * n * k / self._rates(gpu, precision, guesses)
        return np.maximum(moving, computing) + OVERLAP_LOSS * np.minimum(moving, computing)

    def _rates(self, gpu: Gpu, precision: str, guesses: Guesses) -> Array:
        """TFLOP/s (K,) of the product of each kernel.

        A product is cut into tiles of 128 rows, or 64 columns, that multiprocessors compute; k is gone through in
        steps. What sticks out of tiles and steps is computed in vain, and so is the last wave of tiles for
        multiprocessors that get none of them. A gradient of a weight has few tiles and a large k, which is divided
        among as many multiprocessors as there are.
        """
        m, n, k = self.products
        is_triton = self.kinds == "triton"
        library = gpu.tf32 if precision == "tf32" and gpu.tf32 else gpu.fp32
        ours = gpu.tf32 / TF32_PASSES if precision != "tf32" and gpu.tf32 else library
        rate = np.where(self.is_half, gpu.half, np.where(is_triton, ours, library))
        on_tensor_cores = self.is_half | (precision == "tf32") | (is_triton & (gpu.tf32 is not None))
        share = np.where(on_tensor_cores, TENSOR_SHARE, FMA_SHARE)
        step = np.where(self.is_half, 32, np.where(on_tensor_cores, 16, 8))
        is_divided = k > np.maximum(m, n)
        tiles = np.ceil(m / 128) * np.ceil(n / 64)
        wave = tiles / (np.ceil(tiles / gpu.multiprocessors) * gpu.multiprocessors)
        whole = np.maximum(wave, SMALLEST_WAVE) * _used(n, 32) * _used(k, step)
        divided = _used(np.minimum(m, n), 32) * _used(np.maximum(m, n), 64)
        triton = np.where(is_triton, TRITON_SHARE * guesses.triton_rate, 1.0)
        return rate * gpu.clock_share * guesses.rate * triton * share * np.where(is_divided, divided, whole)

    def _by_kind(self, values: dict[str, float]) -> Array:
        """Values (K,) that depend on the kind of a kernel's call."""
        found = np.zeros(len(self.kinds))
        for kind, value in values.items():
            found[self.kinds == kind] = value
        return found


def _used(number: Array, tile: Array | int) -> Array:
    """The share of tiles that a number of values fills; all of it for none."""
    return np.where(number > 0, number / np.maximum(np.ceil(number / tile) * tile, 1), 1.0)


def _with_distances(trace: Trace) -> Iterator[tuple[int, int, float]]:
    """Yield kernel, bytes and distance of each operand: the bytes that were moved since it was last used."""
    last: dict[object, int] = {}
    clock = 0
    for i, (_, kernel) in enumerate(trace.kernels):
        for operand in (*kernel.reads, *kernel.writes):
            yield i, operand.nbytes, clock - last[operand] if operand in last else np.inf
            clock += operand.nbytes
            last[operand] = clock


@dataclass(frozen=True)
class Prediction:
    """The predicted time of a step in milliseconds, and of draws of the guesses.

    Attributes:
        time: With the usual constants.
        draws: With each draw of the guesses; the same draws for all steps.
    """

    time: StepTime
    draws: list[StepTime]

    @property
    def interval(self) -> tuple[float, float]:
        """The eager time from below to above: 80 % of the draws, and at least ABSOLUTE_ERROR to both sides."""
        low, high = middle_of([draw.eager for draw in self.draws])
        return min(low, self.time.eager * (1 - ABSOLUTE_ERROR)), max(high, self.time.eager * (1 + ABSOLUTE_ERROR))


def predict(trace: Trace, gpu: Gpu, precision: str) -> Prediction:
    """Predict the time of a traced step on a GPU, always the same for the same trace."""
    workload, generator = Workload(trace), random.Random(SEED)
    draws = [workload.time_on(gpu, precision, Guesses.drawn(generator)) for _ in range(NUM_DRAWS)]
    return Prediction(workload.time_on(gpu, precision), draws)


def middle_of(values: list[float]) -> tuple[float, float]:
    """Return the bounds of the middle 80 % of some values."""
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)
