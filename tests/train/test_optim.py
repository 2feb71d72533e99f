"""The optimizer against its formula, and the learning rate of every epoch."""

from decimal import Decimal
from fractions import Fraction
from math import ceil, cos, pi

import pytest
import torch
from torch import nn

from train.optim import learning_rate, make_optimizer, set_learning_rate


def test_300_epochs_drop_after_150_and_225():
    rates = [learning_rate(epoch, n_epochs=300, lr=0.1) for epoch in range(1, 301)]
    assert rates == [0.1] * 150 + [0.1 / 10] * 75 + [0.1 / 100] * 75


@pytest.mark.parametrize("n_epochs", [*range(1, 60), 299, 301, 302, 303])
def test_no_drop_is_lost_for_any_number_of_epochs(n_epochs):
    rates = [learning_rate(epoch, n_epochs=n_epochs, lr=1.0) for epoch in range(1, n_epochs + 1)]
    half, three_quarters = (ceil(n_epochs * Fraction(share)) for share in ("1/2", "3/4"))
    assert rates == [1.0] * half + [0.1] * (three_quarters - half) + [0.01] * (n_epochs - three_quarters)


def test_warm_up_grows_in_equal_steps_up_to_the_plain_schedule():
    rates = [learning_rate(epoch, n_epochs=20, lr=0.6, warmup_epochs=5) for epoch in range(1, 21)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5:] == [learning_rate(epoch, n_epochs=20, lr=0.6) for epoch in range(6, 21)]


@pytest.mark.parametrize("n_epochs", [1, 7, 30, 100, 301])
@pytest.mark.parametrize("milestones", [(0.07, 0.29), (0.1, 0.3, 0.6, 0.9), (1 / 3,), (0.5, 0.75)])
def test_the_rate_drops_by_the_factor_once_each_fraction_of_the_epochs_is_done(milestones, n_epochs):
    """In decimals as they are printed: 0.07 of 100 epochs are 7, where 0.07 * 100 is more than 7 in floating point."""
    exact = [Decimal(str(milestone)) for milestone in milestones]
    settings = {"n_epochs": n_epochs, "lr": 0.3, "milestones": milestones, "factor": 0.2}
    for epoch in range(1, n_epochs + 1):
        drops = sum(Decimal(epoch - 1) >= milestone * n_epochs for milestone in exact)
        assert learning_rate(epoch, **settings) == pytest.approx(0.3 * 0.2**drops, rel=1e-15)


@pytest.mark.parametrize("factor", [1.0, 1e-300, 5e-324])
def test_any_factor_gives_a_finite_rate(factor):
    rates = [learning_rate(epoch, n_epochs=4, lr=0.3, milestones=(0.5, 0.75), factor=factor) for epoch in range(1, 5)]
    assert rates == ([0.3] * 4 if factor == 1 else [0.3, 0.3, pytest.approx(0.3 * factor), 0])


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
@pytest.mark.parametrize("n_epochs", [4, 5, 30])
def test_cosine_falls_from_the_full_rate_towards_zero(n_epochs, warmup_epochs):
    settings = {"n_epochs": n_epochs, "lr": 0.4, "schedule": "cosine", "warmup_epochs": warmup_epochs}
    rates = [learning_rate(epoch, **settings) for epoch in range(1, n_epochs + 1)]
    assert rates[:warmup_epochs] == pytest.approx([0.4 * (i + 1) / (warmup_epochs + 1) for i in range(warmup_epochs)])
    length = n_epochs - warmup_epochs
    assert rates[warmup_epochs] == 0.4
    assert rates[warmup_epochs:] == pytest.approx([0.4 * cos(pi / 2 * i / length) ** 2 for i in range(length)])
    assert 0 < rates[-1] < 0.4 or length == 1


def nesterov(weight, gradients, *, lr, momentum, wd):
    """Sutskever's form without dampening, as PyTorch states it, in float64."""
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        gradient = gradient + wd * weight
        velocity = momentum * velocity + gradient
        weight = weight - lr * (gradient + momentum * velocity)
    return weight


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_are_those_of_nesterov_with_weight_decay_on_all_parameters(momentum):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    scale, bias = nn.Parameter(start[:3].clone()), nn.Parameter(start[3:].clone())
    optimizer = make_optimizer([scale, bias], lr=0.3, momentum=momentum, wd=0.01)
    assert len(optimizer.param_groups) == 1  # as in the checkpoints of older versions
    set_learning_rate(optimizer, 0.2)
    for gradient in gradients:
        scale.grad, bias.grad = gradient[:3].clone(), gradient[3:].clone()
        optimizer.step()
    expected = nesterov(start, gradients, lr=0.2, momentum=momentum, wd=0.01)
    torch.testing.assert_close(torch.cat([scale, bias]).detach(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_norms_and_biases_do_not_decay_if_they_are_left_out(momentum):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()
    decayed = {"0.weight", "3.weight"}
    expected, gradients = {}, {}
    for name, weight in network.named_parameters():
        gradients[name] = torch.randn(4, *weight.shape, dtype=torch.float64)
        wd = 0.1 if name in decayed else 0
        expected[name] = nesterov(weight.detach().clone(), gradients[name], lr=0.2, momentum=momentum, wd=wd)
    optimizer = make_optimizer(network.parameters(), lr=0.3, momentum=momentum, wd=0.1, decay_norms=False)
    set_learning_rate(optimizer, 0.2)
    for step in range(4):
        for name, weight in network.named_parameters():
            weight.grad = gradients[name][step].clone()
        optimizer.step()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-13, atol=1e-13)
