"""The temperature of the largest likelihood, against SciPy's minimiser of the likelihood itself and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from commands.calibration import HIGHEST, LOWEST
from commands.evaluate.temperature import fit_temperature


def loss_at(temperature, logits, labels):
    scaled = logits.double().numpy() / temperature
    return np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels.numpy()])


def labelled(num_images, num_classes, temperature, seed):
    """Logits, and labels drawn from the probabilities that they have at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator) * 4
    return logits, (logits / temperature).softmax(1).multinomial(1, generator=generator).squeeze(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 300), st.integers(2, 20), st.floats(0.3, 5), st.integers(0, 1000))
def test_it_is_that_of_scipy(num_images, num_classes, temperature, seed):
    logits, labels = labelled(num_images, num_classes, temperature, seed)
    fitted = fit_temperature(logits, labels)
    assume(LOWEST < fitted < HIGHEST)
    found = minimize_scalar(
        lambda log: loss_at(math.exp(log), logits, labels),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # SciPy compares values of the loss, which are flat at its minimum to within the root of their rounding.
    assert math.log(fitted) == pytest.approx(found.x, abs=1e-5)
    assert loss_at(fitted, logits, labels) <= found.fun + 1e-14


def test_it_finds_the_temperature_that_the_labels_were_drawn_at():
    logits, labels = labelled(50_000, 5, 2.5, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)


def test_two_classes_have_a_closed_form():
    """The logits of 10 images differ by 2, and 8 of them are right: 2 / T = log(8 / 2)."""
    logits, labels = torch.tensor([[2.0, 0.0]]).repeat(10, 1), torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, labels) == pytest.approx(2 / math.log(4), rel=1e-10)
    assert fit_temperature(logits + 1e4, labels) == pytest.approx(2 / math.log(4), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_where_all_images_are_classified_correctly_it_is_the_lowest(scale):
    logits = torch.eye(4) * scale
    assert fit_temperature(logits, torch.arange(4)) == LOWEST


def test_where_the_network_is_worse_than_a_guess_it_is_the_highest():
    assert fit_temperature(torch.eye(4) * 5, torch.tensor([1, 2, 3, 0])) == HIGHEST


def test_a_single_mistake_is_enough_for_a_temperature():
    logits, labels = torch.eye(2).repeat(500, 1) * 8, torch.arange(2).repeat(500)
    labels[0] = 1
    assert fit_temperature(logits, labels) == pytest.approx(8 / math.log(999), rel=1e-10)
