"""Calibration error and likelihood, against NumPy, SciPy and values by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from commands.evaluate.reliability import BINS, Reliability, ReliabilityCounts
from train.errors import RunError

CPU = torch.device("cpu")


def reliability_of(logits, labels, *, temperature=1.0, batch_size=7):
    counts = ReliabilityCounts.zeros(CPU, temperature=temperature)
    for some_logits, some_labels in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        counts.add(some_logits, some_labels)
    return Reliability.from_counts(counts)


def by_numpy(logits, labels, temperature):
    """Calibration error, average confidence and loss by their definitions, bin by bin over a list of images."""
    scaled = logits.double().numpy() / temperature
    probabilities = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    error = 0.0
    for number in range(1, 16):
        inside = (confidence > (number - 1) / 15) & (confidence <= number / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    loss = np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels.numpy()])
    return error, confidence.mean(), loss


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 1000), st.floats(0.1, 10))
def test_it_agrees_with_numpy(num_images, num_classes, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator) * 3
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    measured = reliability_of(logits, labels, temperature=temperature)
    error, confidence, loss = by_numpy(logits, labels, temperature)
    assert measured.calibration_error == pytest.approx(error, abs=1e-12)
    assert measured.confidence == pytest.approx(confidence, abs=1e-12)
    assert measured.loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert sum(one.images for one in measured.bins) == num_images


def logits_with(*confidences):
    """Logits of two classes, the first of which has these probabilities in float64."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_an_example_by_hand():
    """Five images: two in the bin up to 9/15, right once, and three in the bin up to 14/15, right each time."""
    logits = logits_with(0.55, 0.57, 0.9, 0.9, 0.93)
    measured = reliability_of(logits, torch.tensor([0, 1, 0, 0, 0]))
    by_hand = (abs(1 - 0.55 - 0.57) + abs(3 - 0.9 - 0.9 - 0.93)) / 5
    assert measured.calibration_error == pytest.approx(by_hand, abs=1e-14)
    assert measured.loss == pytest.approx(-math.log(0.55 * 0.43 * 0.9 * 0.9 * 0.93) / 5, rel=1e-14)
    filled = {i: one for i, one in enumerate(measured.bins) if one.images}
    assert {i: (one.images, one.accuracy) for i, one in filled.items()} == {8: (2, 0.5), 13: (3, 1.0)}
    assert filled[8].confidence == pytest.approx(0.56)
    assert (filled[13].low, filled[13].high) == (13 / 15, 14 / 15)
    assert {one.confidence for i, one in enumerate(measured.bins) if i not in filled} == {None}


def test_a_bin_has_its_upper_end_and_the_last_one_has_the_confidence_1():
    equal = torch.zeros(1, 5, dtype=torch.float64)  # confidence 1/5 = 3/15, the upper end of the third bin
    sure = torch.tensor([[1000.0, 0, 0, 0, 0]], dtype=torch.float64)
    assert equal.softmax(1).max() == 3 / 15
    assert sure.softmax(1).max() == 1
    for logits, expected in ((equal, 2), (sure, 14)):
        bins = reliability_of(logits, torch.tensor([0])).bins
        assert [i for i, one in enumerate(bins) if one.images] == [expected]
    assert [one.high for one in bins] == [one.low for one in bins[1:]] + [1]
    assert len(bins) == BINS == 15


def test_probabilities_that_are_always_right_have_no_error_and_confident_mistakes_an_error_of_1():
    logits = torch.tensor([[100.0, 0], [0, 100.0]])
    assert reliability_of(logits, torch.tensor([0, 1])).calibration_error == pytest.approx(0, abs=1e-12)
    assert reliability_of(logits, torch.tensor([1, 0])).calibration_error == pytest.approx(1, abs=1e-12)


def test_equal_logits_have_the_loss_of_a_guess():
    measured = reliability_of(torch.zeros(100, 8), torch.arange(100) % 8)
    assert measured.loss == pytest.approx(math.log(8))


def test_a_million_small_losses_are_not_lost_beside_a_large_one():
    counts = ReliabilityCounts.zeros(CPU)
    counts.add(torch.tensor([[0.0, 1e9]]), torch.tensor([0]))
    for _ in range(100):
        counts.add(torch.zeros(100, 2), torch.zeros(100, dtype=torch.int64))
    assert counts.loss.item() - 1e9 == pytest.approx(10_000 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(value):
    with pytest.raises(RunError, match="the test loss is NaN or infinite"):
        reliability_of(torch.tensor([[0.0, value], [0.0, 0.0]]), torch.tensor([0, 0]))
