"""The average of the weights: against its formula and PyTorch's own, through skipped steps, and in the network."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import densenet_bc
from train.ema import ExponentialMovingAverage
from train.optim import make_optimizer
from train.step import Stepper

TAKEN, SKIPPED = torch.zeros(()), torch.ones(())


def make_network():
    torch.manual_seed(0)
    return densenet_bc(10, 2, efficient=False).double()


def batches(num_batches, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_batches):
        images = torch.randn(4, 3, 8, 8, generator=generator, dtype=dtype)
        yield images, torch.randint(10, (4,), generator=generator), 4


def make_stepper(network, decay, scaler=None):
    optimizer = make_optimizer(network.parameters(), lr=0.1, momentum=0.9, wd=1e-3)
    return Stepper(network, optimizer, scaler, average=ExponentialMovingAverage(network, decay))


def of_formula(values, decay):
    """The initial value and those after each step, weighted as the documentation says, in float64."""
    average = np.asarray(values[0], dtype=np.float64)
    for t, value in enumerate(values[1:], start=1):
        its_decay = min(decay, (1 + t) / (10 + t))
        average = its_decay * average + (1 - its_decay) * np.asarray(value)
    return average


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_weights_and_running_statistics_are_averaged_by_the_formula(decay):
    network = make_network()
    stepper = make_stepper(network, decay)
    history = {name: [value.numpy().copy()] for name, value in network.state_dict().items()}
    for batch in batches(20):
        stepper.take(*batch)
        for name, value in network.state_dict().items():
            history[name].append(value.numpy().copy())
    state = stepper.average.state_dict()
    assert state.pop("steps") == 20
    assert state.keys() == {name for name in history if not name.endswith("num_batches_tracked")}
    for name, average in state.items():
        np.testing.assert_allclose(average, of_formula(history[name], decay), rtol=1e-12, atol=1e-14)


def test_a_constant_decay_gives_the_average_of_pytorch():
    decay = 0.15  # lower than 2 / 11, so that it never has to grow
    network = make_network()
    stepper = make_stepper(network, decay)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.update_parameters(network)  # the first one copies
    for batch in batches(5):
        stepper.take(*batch)
        theirs.update_parameters(network)
    expected = theirs.module.state_dict()
    for name, average in stepper.average.state_dict().items():
        if name != "steps":
            torch.testing.assert_close(average, expected[name], rtol=1e-12, atol=1e-14)


def test_the_initial_weights_are_forgotten_soon_even_if_the_decay_is_high():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1)
    average = ExponentialMovingAverage(network, 0.9999)
    network.weight.data.zero_()
    for _ in range(100):
        average.update(TAKEN)
    (weight,) = (value.item() for name, value in average.state_dict().items() if name == "weight")
    expected = math.prod((1 + t) / (10 + t) for t in range(1, 101))
    assert weight == pytest.approx(expected, rel=1e-4)
    assert weight < 1e-6 < 0.9999**100


def test_a_skipped_step_changes_no_bit_of_it():
    network = make_network()
    average = ExponentialMovingAverage(network, 0.9)
    for weight in network.parameters():
        weight.data += 1
    average.update(TAKEN)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    average.update(SKIPPED)
    for name, value in average.state_dict().items():
        assert torch.equal(value, before[name])


class Scaled(nn.Module):
    """Logits whose gradients overflow in fp16 where the scale of the loss is high."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, images):
        return self.weight.half().float().expand(len(images), 2)


def test_steps_that_overflow_in_fp16_are_left_out():
    network = Scaled()
    stepper = make_stepper(network, 0.9, torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=3))
    stepper.begin_epoch()
    values, skipped = [network.weight.tolist()], 0
    for _ in range(20):
        stepper.take(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), 4)
        if stepper.num_skipped() == skipped:
            values.append(network.weight.tolist())
        skipped = stepper.num_skipped()
    assert skipped >= 4
    state = stepper.average.state_dict()
    assert state["steps"] == 20 - skipped
    np.testing.assert_allclose(state["weight"], of_formula(values, 0.9), rtol=1e-6)


def test_nothing_is_averaged_from_the_first_loss_that_is_no_number():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    stepper = make_stepper(network, 0.9)
    stepper.begin_epoch()
    (images, labels, size), *_ = good = list(batches(3, dtype=torch.float32))
    for batch in good:
        stepper.take(*batch)
    before = {name: value.clone() for name, value in stepper.average.state_dict().items()}
    for batch in [(images * math.nan, labels, size), *good]:
        stepper.take(*batch)
    for name, value in stepper.average.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_network_has_the_average_inside_and_its_own_weights_after_whatever_happens():
    network = make_network()
    stepper = make_stepper(network, 0.9)
    for batch in batches(5):
        stepper.take(*batch)
    network.eval()
    images = next(batches(1))[0]
    own = {name: value.clone() for name, value in network.state_dict().items()}
    averages = {name: value.clone() for name, value in stepper.average.state_dict().items() if name != "steps"}
    expected = functional_call(copy.deepcopy(network), averages, (images,))
    logits = []

    def interrupted(images):
        logits.append(network(images))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), stepper.average.in_network():
        interrupted(images)
    assert torch.equal(logits[0], expected)
    assert not torch.equal(logits[0], network(images))
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(stepper.average.state_dict()[name], value) for name, value in averages.items())


def test_its_buffers_are_the_averages_of_running_statistics_in_place():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = ExponentialMovingAverage(network, 0.9)
    for buffer in average.buffers().values():
        buffer.fill_(7)
    state = average.state_dict()
    assert {name for name, value in state.items() if (value == 7).all()} == {"1.running_mean", "1.running_var"}
