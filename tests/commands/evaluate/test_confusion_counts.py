"""Counts over a test set, against scikit-learn and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import nn

from commands.evaluate.classify import Logits, classify
from commands.evaluate.confusion_counts import ConfusionCounts
from commands.evaluate.reliability import Reliability, ReliabilityCounts
from commands.evaluate.report import Report

CPU = torch.device("cpu")


def random_predictions(num_images, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_images,), generator=generator)


def counts_of(logits, labels, *, batch_size=7):
    counts = ConfusionCounts.zeros(logits.shape[1], CPU)
    for some_logits, some_labels in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        counts.add(some_logits, some_labels)
    return counts


def report_on(counts):
    reliability = Reliability(1.0, 0.5, 0.1, 0.9, ())
    return Report.from_counts(counts, tuple(f"class {i}" for i in range(len(counts.matrix))), reliability)


@given(st.integers(1, 60), st.integers(2, 25), st.integers(0, 1000))
def test_the_report_agrees_with_scikit_learn(num_images, num_classes, seed):
    logits, labels = random_predictions(num_images, num_classes, seed)
    classes = list(range(num_classes))
    measured = report_on(counts_of(logits, labels))
    expected = confusion_matrix(labels, logits.argmax(1), labels=classes)
    assert measured.confusion.tolist() == expected.tolist()
    assert measured.confusion.dtype == torch.int64
    assert measured.error == (logits.argmax(1) != labels).sum().item() / num_images
    if num_classes >= 10:
        accuracy = top_k_accuracy_score(labels, logits.double(), k=5, labels=classes)
        assert measured.top5_error == pytest.approx(1 - accuracy, abs=1e-12)
    else:
        assert measured.top5_error is None


def test_the_top5_error_counts_classes_in_sixth_place_and_not_in_fifth():
    logits = torch.arange(10.0).flip(0).expand(10, 10)  # class i is in place i + 1
    counts = counts_of(logits, torch.arange(10))
    assert report_on(counts).top5_error == 0.5
    assert report_on(counts).error == 0.9


class Batches(list):
    num_images = 20


def test_the_network_runs_in_eval_mode_without_gradients_and_all_listeners_hear_it():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 3))
    images, labels = torch.rand(20, 3, 2, 2), torch.arange(20) % 3
    batches = Batches(zip(images.split(8), labels.split(8), (8, 8, 4), strict=True))
    counts, kept = ConfusionCounts.zeros(3, CPU), Logits()
    classify(network, batches, counts, kept)
    logits, kept_labels = kept.read()
    assert torch.equal(logits, network(images))
    assert torch.equal(kept_labels, labels)
    assert not logits.requires_grad
    assert torch.equal(counts.matrix, counts_of(logits, labels).matrix)


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, capsys):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    batches = Batches([(torch.rand(10, 3, 2, 2), torch.zeros(10, dtype=torch.int64), 10)] * 2)
    classify(network, batches)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    classify(network, batches, name="some images")
    assert "some images" in capsys.readouterr().err


@pytest.mark.gpu
def test_no_batch_waits_for_the_device():
    device = torch.device("cuda")
    logits, labels = (values.to(device) for values in random_predictions(64, 100))
    counts, reliability = ConfusionCounts.zeros(100, device), ReliabilityCounts.zeros(device)
    listeners = (counts, reliability, Logits())
    for listener in listeners:
        listener.add(logits, labels)  # the first call may allocate and wait
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for listener in listeners:
            listener.add(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts.matrix.cpu().tolist() == (2 * counts_of(logits.cpu(), labels.cpu()).matrix).tolist()
    assert reliability.images.sum().item() == 128
