"""Captured steps: the bits of eager ones, whatever changes between them, and what happens if a capture fails."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import densenet_bc
from tests.support.recorded_graph import WAITING, RecordedGraphs, Recorder
from train import runtime
from train.cuda_graph import EAGER_STEPS, CaptureError, CudaGraphs
from train.ema import ExponentialMovingAverage
from train.engine import train_one_epoch
from train.metrics import NonFiniteLoss, RunningMetrics
from train.optim import make_optimizer, set_learning_rate
from train.replicas import replicate
from train.restore import collect, processes_inside_epoch, restore
from train.run.checkpoint import Checkpoint
from train.run.unfinished_epoch import UnfinishedEpoch
from train.signals import GracefulStop
from train.step import Stepper

CPU = torch.device("cpu")
SCALE = {"init_scale": 2.0**19, "growth_interval": 3}  # the first step overflows, and later ones from time to time


class SilentBar:
    """A bar that never asks for numbers."""

    epoch = 1

    def advance(self, num_images):
        pass

    def is_due(self):
        return False


def batches(*sizes, seed=0, device=CPU, mixed=False):
    generator = torch.Generator().manual_seed(seed)
    for n in sizes:
        images = torch.randn(n, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (n,), generator=generator)
        yield images.to(device), (F.one_hot(labels, 10) * 0.7 + 0.03 if mixed else labels).to(device), n


def make_stepper(graphs=None, *, efficient="buffer", drop_rate=0.0, precision="fp32", ema=0, device=CPU, **settings):
    """A small network and a stepper whose learning rate is on the device, as on a GPU."""
    torch.manual_seed(0)
    network = runtime.placed(densenet_bc(10, 2, efficient=efficient, drop_rate=drop_rate), device)
    optimizer = make_optimizer(network.parameters(), lr=0.1, momentum=0.9, wd=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"])
    scaler = torch.amp.GradScaler(device.type, **SCALE) if precision == "fp16" else None
    model = replicate(network, device, precision=precision).training
    average = ExponentialMovingAverage(network, ema) if ema else None
    return Stepper(model, optimizer, scaler, graphs=graphs, average=average, **settings)


def train(stepper, *sizes, epochs=5, mixed=False):
    """Train with another rate and other masks in each epoch; return all that is left of it."""
    seen, device = [], stepper.metrics.sums.device
    for epoch in range(1, epochs + 1):
        runtime.seed_epoch(7, epoch)
        set_learning_rate(stepper.optimizer, 0.1 / epoch)
        metrics = train_one_epoch(
            stepper, batches(*sizes, seed=epoch, device=device, mixed=mixed), SilentBar(), GracefulStop()
        )
        seen += [metrics.loss, metrics.error, stepper.num_skipped(), stepper.scaler.state_dict()]
    state = stepper.optimizer.state_dict()["state"]
    left = [*stepper.model.state_dict().values(), *(state[i]["momentum_buffer"] for i in state)]
    return seen, [*left, *(stepper.average.state_dict().values() if stepper.average else ())]


def assert_same_bits(ours, expected):
    (numbers, tensors), (expected_numbers, expected_tensors) = ours, expected
    assert numbers == expected_numbers
    for tensor, expected_tensor in zip(tensors, expected_tensors, strict=True):
        assert torch.equal(tensor, expected_tensor)


CASES = [
    {"efficient": "naive"},
    {"efficient": "naive", "drop_rate": 0.2, "clip_grad": 1.0, "ema": 0.5},
    {"efficient": "checkpoint"},
    {"efficient": "buffer"},
    {"efficient": "buffer", "drop_rate": 0.2, "accum_steps": 2},
    {"efficient": "buffer_fast", "drop_rate": 0.2, "precision": "bf16"},
    {"efficient": "buffer", "precision": "fp16", "drop_rate": 0.2},
    {"efficient": "naive", "precision": "fp16", "accum_steps": 3, "clip_grad": 1.0, "ema": 0.5},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_captured_steps_have_the_bits_of_eager_ones(case):
    graphs = RecordedGraphs()
    sizes = 6, 6, 6, 3  # the last batch is captured in the fourth epoch
    ours, expected = train(make_stepper(graphs, **case), *sizes), train(make_stepper(**case), *sizes)
    assert_same_bits(ours, expected)
    assert (graphs.captures, graphs.warm_ups, graphs.replays) == (2, 2 * EAGER_STEPS, 20 - 2 * EAGER_STEPS)
    skipped_in_graphs = ours[0][2::4][1:]
    assert skipped_in_graphs == [None] * 4 if case.get("precision") != "fp16" else sum(skipped_in_graphs) >= 4


def test_captured_steps_of_mixed_labels_have_the_bits_of_eager_ones():
    graphs = RecordedGraphs()
    ours, expected = (train(make_stepper(each), 6, 6, mixed=True) for each in (graphs, None))
    assert_same_bits(ours, expected)
    assert graphs.replays > 0


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_waits_for_nothing(case, mixed):
    stepper = make_stepper(**case)
    stepper.begin_epoch()
    given = [*batches(6, 6, mixed=mixed)]
    with Recorder() as recorder:
        for batch in given:
            stepper.take(*batch)
    names = [function.name() for function, *_ in recorder.calls]
    assert any(name.startswith("aten::convolution_backward") for name in names)
    assert [name for name in names if name.startswith(WAITING)] == []


class Devices(TorchDispatchMode):
    """Collects the devices of all tensors that operations read and write."""

    def __init__(self):
        super().__init__()
        self.seen = {}  # by operation

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_fused = "fused_sgd" in function.name()  # which has no kernel for tensors without numbers
        result = None if is_fused else function(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves([args, kwargs, result]) if isinstance(leaf, torch.Tensor))
        self.seen[function.name()] = {tensor.device.type for tensor in tensors}
        return result


def test_what_a_step_notes_never_leaves_the_device():
    """With tensors that only say that they are on a GPU. A backward pass over such tensors needs one."""
    with FakeTensorMode():
        network = torch.nn.Linear(3, 10, bias=False, device="cuda")
        (weight,) = network.parameters()
        weight.grad = torch.ones_like(weight)
        logits, labels = torch.ones(4, 10, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
        optimizer, metrics = make_optimizer([weight], lr=0.1, momentum=0.9, wd=0), RunningMetrics(weight.device)
        average = ExponentialMovingAverage(network, 0.9)
        with Devices() as devices:
            set_learning_rate(optimizer, 0.05)
            metrics.begin_batch()
            metrics.add(logits.sum(), logits, labels)
            optimizer.found_inf = metrics.failed
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
            average.update(optimizer.found_inf)
            metrics.reset()
    of_device = {name: seen for name, seen in devices.seen.items() if not name.startswith("profiler::")}
    assert "aten::_fused_sgd_.tensor_lr" in of_device
    assert set(map(frozenset, of_device.values())) == {frozenset({"cuda"})}


def train_in_two_parts(device, graphs, num_steps, path):
    """Train an epoch; what is saved after some steps goes on with another network. Return all that is left of it."""
    case, every = {"drop_rate": 0.2, "precision": "fp16", "device": device}, list(batches(*[6] * 12, device=device))
    runtime.seed_epoch(7, 1)
    stepper = make_stepper(graphs(), **case)
    if num_steps:
        train_one_epoch(stepper, (batch for batch in every[:num_steps]), SilentBar(), GracefulStop())
        checkpoint, network = Checkpoint(), stepper.model.network
        collect(checkpoint, network, stepper)
        processes = processes_inside_epoch(network, stepper)
        checkpoint.unfinished = UnfinishedEpoch(num_steps, 6 * num_steps, 0.1, 1.0, processes)
        stepper = make_stepper(graphs(), **case)
        restore(stepper.model.network, stepper, checkpoint, path)
        assert runtime.set_random_states(processes[0].random)
    rest, is_resumed = (batch for batch in every[num_steps:]), num_steps > 0
    metrics = train_one_epoch(stepper, rest, SilentBar(), GracefulStop(), is_resumed=is_resumed)
    momentum = [state["momentum_buffer"] for state in stepper.optimizer.state_dict()["state"].values()]
    seen = [metrics, stepper.num_skipped(), stepper.num_steps, stepper.scaler.state_dict()]
    return seen, [*stepper.model.state_dict().values(), *momentum]


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)], ids=str)
def test_captured_steps_are_saved_and_resumed_inside_an_epoch(device, tmp_path):
    runtime.be_deterministic()
    expected = train_in_two_parts(device, lambda: None, 0, tmp_path)
    assert expected[0][1] > 1
    for num_steps in (1, EAGER_STEPS + 2):
        graphs = RecordedGraphs if device == CPU else lambda: CudaGraphs(device)
        assert_same_bits(train_in_two_parts(device, graphs, num_steps, tmp_path), expected)


def test_a_shape_that_does_not_come_again_is_not_captured():
    graphs = RecordedGraphs()
    train(make_stepper(graphs), *[6] * EAGER_STEPS, 4, 3, 3, epochs=1)
    assert (graphs.captures, graphs.warm_ups) == (0, EAGER_STEPS + 3)


def test_a_bad_loss_in_a_captured_step_names_its_batch_and_stops_all_further_steps():
    good = list(batches(*[6] * 6))
    images, labels, size = good[0]
    bad = images * math.nan, labels, size
    weights = []
    for graphs in (RecordedGraphs(), None):
        stepper = make_stepper(graphs)
        train_one_epoch(stepper, (batch for batch in good), SilentBar(), GracefulStop())
        with pytest.raises(NonFiniteLoss) as failure:
            train_one_epoch(stepper, (batch for batch in [*good, bad, *good]), SilentBar(), GracefulStop())
        assert failure.value.batch == 7
        weights.append([parameter.detach() for parameter in stepper.model.parameters()])
        assert all(weight.isfinite().all() for weight in weights[-1])
    assert all(map(torch.equal, *weights))


def num_operations(case):
    """The operations of a step."""
    graphs = RecordedGraphs()
    train(make_stepper(graphs, **case), *[6] * (EAGER_STEPS + 1), epochs=1)
    return graphs.num_operations


@pytest.mark.parametrize("case", [CASES[4], CASES[6]], ids=str)
def test_a_capture_that_fails_anywhere_is_said_once_and_leaves_no_trace(case, capsys):
    whole, sizes = num_operations(case), [6] * (EAGER_STEPS + 3)
    expected = train(make_stepper(**case), *sizes, epochs=2)
    # In the forward pass, in the backward pass, in the optimizer's step, and after it where there is a scaler.
    for num_allowed in (whole // 4, 3 * whole // 4, whole - 5, whole - 2, whole - 1):
        graphs = RecordedGraphs(num_allowed)
        assert_same_bits(train(make_stepper(graphs, **case), *sizes, epochs=2), expected)
        assert (graphs.captures, graphs.replays) == (1, 0)
        (said,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(
            "warning: --cuda_graph is True, but a step cannot be captured, and the run goes on without graphs: "
            "aten::[a-zA-Z_.]+ is not permitted when stream is capturing",
            said,
        )


def test_a_capture_that_fails_gives_up_those_that_did_not():
    case = {"drop_rate": 0.2}
    graphs = RecordedGraphs()
    stepper = make_stepper(graphs, **case)

    sizes = 6, 6, 6, 3
    real = graphs.capture

    def capture(function):
        graphs.num_allowed = 5 if graphs.captures else None
        return real(function)

    graphs.capture = capture
    assert_same_bits(train(stepper, *sizes), train(make_stepper(**case), *sizes))
    assert graphs.captures == 2
    assert graphs.replays == 9  # in the second to the fourth epoch


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_graphs_on_a_gpu_have_the_bits_of_eager_steps(case):
    runtime.be_deterministic()
    device, sizes = torch.device("cuda", 0), (6, 6, 6, 3)
    ours, expected = (
        train(make_stepper(graphs, device=device, **case), *sizes) for graphs in (CudaGraphs(device), None)
    )
    assert_same_bits(ours, expected)


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu_leaves_no_trace(capsys):
    runtime.be_deterministic()
    device, sizes, case = torch.device("cuda", 0), (6, 6, 6, 6, 6, 3), {"drop_rate": 0.2}
    stepper = make_stepper(CudaGraphs(device), device=device, **case)

    def read_a_number(module, images, logits):
        logits.sum().item()

    stepper.model.register_forward_hook(read_a_number)
    assert_same_bits(train(stepper, *sizes), train(make_stepper(device=device, **case), *sizes))
    assert capsys.readouterr().err.count("a step cannot be captured") == 1
    torch.cuda.empty_cache()  # which fails if the allocator still believes in a capture


class Stub:
    """Takes the place of classes of torch.cuda: it can be called, entered, and asked for anything."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        return lambda *_, **__: None


class FailingGraph(Stub):
    """A capture whose end fails too, as it does after an error."""

    def __exit__(self, *_):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore lines")


class Generator:
    """A generator that a failed capture leaves in a state of its own."""

    def __init__(self, state="before"):
        self.state = state

    def clone_state(self):
        return Generator(self.state)

    def graphsafe_set_state(self, other):
        self.state = other.state


def test_a_capture_that_fails_says_what_failed_first_and_puts_the_generator_back(monkeypatch):
    generator, ended = Generator(), []

    def end_allocation(device, pool):
        ended.append((device, pool))
        raise RuntimeError("not currently recording to mempool_id")  # as where PyTorch has done it

    for name, value in {
        "Stream": Stub,
        "stream": Stub,
        "CUDAGraph": Stub,
        "graph": FailingGraph,
        "default_generators": [generator],
        "graph_pool_handle": lambda: "pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation, raising=False)

    def function():
        generator.state = "in a capture"
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

    with pytest.raises(CaptureError) as failure:
        CudaGraphs(torch.device("cuda", 0)).capture(function)
    assert str(failure.value) == "CUDA error: operation not permitted when stream is capturing"
    assert generator.state == "before"
    assert ended == [(0, "pool")]
