"""The loop: its averages, its steps, what it does with numbers that are none and with signals; it never waits."""

import math
import re
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import densenet_bc
from train.engine import evaluate, train_one_epoch
from train.metrics import NonFiniteLoss, RunningMetrics
from train.optim import make_optimizer
from train.progress import EpochBar
from train.signals import GracefulStop, Stopped
from train.step import Stepper
from train.terminal import Bar


class Batches(list):
    """Batches (images, labels, size), as a loader of validation images gives them."""

    def __iter__(self):
        yield from super().__iter__()


def stream(batches):
    """Batches as a loader gives them in training."""
    yield from batches


class SilentBar:
    """A bar that never asks for numbers."""

    epoch = 1

    def advance(self, num_images):
        pass

    def is_due(self):
        return False


def make_batches(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batches(
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator), n) for n in sizes
    )


def make_network(seed=0):
    torch.manual_seed(seed)
    return densenet_bc(10, 2)


def make_linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def test_averages_are_over_images_not_batches():
    batches = make_batches([7, 7, 2])
    network = make_network().eval()
    with torch.no_grad():
        logits = network(torch.cat([images for images, *_ in batches])).double()
    labels = torch.cat([labels for _, labels, _ in batches])
    metrics = evaluate(network, batches, Bar("test", 16), GracefulStop())
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert metrics.error == pytest.approx((logits.argmax(1) != labels).sum().item() / 16, rel=1e-12)


def test_evaluation_changes_nothing_and_uses_running_statistics():
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    alone = evaluate(network, make_batches([1] * 16), Bar("test", 16), GracefulStop())
    together = evaluate(network, make_batches([1] * 16), Bar("test", 16), GracefulStop())
    assert alone == together
    assert not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_an_epoch_takes_the_steps_of_a_plain_loop():
    batches = make_batches([8, 8, 3])
    ours, plain = make_network(), make_network()
    optimizer = make_optimizer(ours.parameters(), lr=0.1, momentum=0.9, wd=1e-3)
    train_one_epoch(Stepper(ours, optimizer), stream(batches), SilentBar(), GracefulStop())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    for images, labels, _ in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for mine, theirs in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_no_step_is_taken_from_the_first_loss_that_is_no_number(value, momentum):
    good = make_batches([8, 8])
    bad = (torch.full((8, 3, 8, 8), value), good[0][1], 8)
    ours, stopped_before = make_linear(), make_linear()
    optimizer = make_optimizer(ours.parameters(), lr=0.1, momentum=momentum, wd=0)
    with pytest.raises(NonFiniteLoss) as failure:
        train_one_epoch(Stepper(ours, optimizer), stream([*good, bad, *good]), SilentBar(), GracefulStop())
    assert failure.value.batch == 3
    optimizer = make_optimizer(stopped_before.parameters(), lr=0.1, momentum=momentum, wd=0)
    train_one_epoch(Stepper(stopped_before, optimizer), stream(good), SilentBar(), GracefulStop())
    for mine, expected in zip(ours.parameters(), stopped_before.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_bar_that_is_due_reports_a_bad_loss_at_once():
    class DueBar(SilentBar):
        def is_due(self):
            return True

        def show(self, metrics):
            raise AssertionError("a bad average was shown")

    network = make_linear()
    consumed = []

    def batches():
        for i in range(5):
            consumed.append(i)
            yield torch.full((4, 3, 8, 8), math.nan), torch.zeros(4, dtype=torch.long), 4

    optimizer = make_optimizer(network.parameters(), lr=1, momentum=0, wd=0)
    with pytest.raises(NonFiniteLoss):
        train_one_epoch(Stepper(network, optimizer), batches(), DueBar(), GracefulStop())
    assert consumed == [0]


class Recorder(TorchDispatchMode):
    """Collects the names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")


def test_steps_use_no_operation_that_waits_for_the_device(monkeypatch):
    monkeypatch.setattr(RunningMetrics, "read", lambda *_: None)
    network = make_network()
    optimizer = make_optimizer(network.parameters(), lr=0.1, momentum=0.9, wd=0)
    with Recorder() as recorder:
        train_one_epoch(Stepper(network, optimizer), stream(make_batches([4, 4])), SilentBar(), GracefulStop())
    assert any(name.startswith("aten::convolution_backward") for name in recorder.names)
    assert [name for name in recorder.names if name.startswith(WAITING)] == []


def test_evaluation_uses_no_operation_that_waits_for_the_device(monkeypatch, capsys):
    """Nor does its bar."""
    monkeypatch.setattr(RunningMetrics, "read", lambda *_: None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Recorder() as recorder, Bar("validation 2/30", 8) as bar:
        evaluate(make_network(), make_batches([4, 4]), bar, GracefulStop())
        bar._tqdm.refresh()
    assert "aten::convolution" in recorder.names
    assert [name for name in recorder.names if name.startswith(WAITING)] == []
    assert re.search(r"validation 2/30: 100%.* 8/8 .*images/s", capsys.readouterr().err)


def test_a_signal_ends_an_evaluation_after_the_batch_in_hand_and_closes_the_batches():
    taken = []

    class Signalled(Batches):
        def __iter__(self):
            try:
                for i, batch in enumerate(super().__iter__()):
                    taken.append(i)
                    if i == 1:
                        signal.raise_signal(signal.SIGTERM)
                    yield batch
            finally:
                taken.append("closed")

    with pytest.raises(Stopped) as stopped, GracefulStop() as stop:
        evaluate(make_network(), Signalled(make_batches([4] * 4)), Bar("validation 2/30", 16), stop)
    assert taken == [0, 1, "closed"]  # though the exception still holds the frame with the iterator
    assert str(stopped.value) == "stopped by SIGTERM in validation 2/30, batch 2"


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for():
    device = torch.device("cuda")
    network = make_network().to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network.parameters(), lr=0.1, momentum=0.9, wd=1e-4)
    batches = [(images.to(device), labels.to(device), size) for images, labels, size in make_batches([8] * 4)]
    train_one_epoch(
        Stepper(network, optimizer), stream(batches), SilentBar(), GracefulStop()
    )  # the first steps may allocate and wait

    class Watched(Batches):
        def __iter__(self):
            torch.cuda.set_sync_debug_mode("error")
            yield from super().__iter__()
            torch.cuda.set_sync_debug_mode("default")

    try:
        train_one_epoch(Stepper(network, optimizer), stream(Watched(batches)), SilentBar(), GracefulStop())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bar_on_a_terminal_shows_loss_error_speed_and_rate(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    network = make_linear()
    optimizer = make_optimizer(network.parameters(), lr=0.1, momentum=0, wd=0)
    with EpochBar(2, 30, 32, 0.05) as bar:
        bar.next_read = 0.0
        train_one_epoch(Stepper(network, optimizer), stream(make_batches([16, 16])), bar, GracefulStop())
        bar._tqdm.refresh()
    shown = capsys.readouterr().err
    for part in ("epoch 2/30", "loss ", "error ", "lr 0.05", " images/s"):
        assert part in shown


def test_bars_write_nothing_where_there_is_no_terminal(capsys):
    for bar in (EpochBar(1, 1, 32, 0.1), Bar("final test", 32)):
        with bar:
            bar.advance(16)
    assert capsys.readouterr().err == ""
