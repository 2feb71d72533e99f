"""Counts over a test set, against scikit-learn, closed forms and PyTorch in 64 bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from commands.evaluate.confusion_counts import ConfusionCounts, count_confusions
from commands.evaluate.report import Report
from train.errors import RunError

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


def names(num_classes):
    return tuple(f"class {i}" for i in range(num_classes))


@given(st.integers(1, 60), st.integers(2, 25), st.integers(0, 1000))
def test_the_report_agrees_with_scikit_learn(num_images, num_classes, seed):
    logits, labels = random_predictions(num_images, num_classes, seed)
    classes = list(range(num_classes))
    measured = Report.from_counts(counts_of(logits, labels), names(num_classes))
    expected = confusion_matrix(labels, logits.argmax(1), labels=classes)
    assert measured.confusion.tolist() == expected.tolist()
    assert measured.confusion.dtype == torch.int64
    assert measured.error == (logits.argmax(1) != labels).sum().item() / num_images
    probabilities = F.softmax(logits.double(), 1)
    probabilities /= probabilities.sum(1, keepdim=True)
    assert measured.loss == pytest.approx(log_loss(labels, probabilities, labels=classes), rel=1e-9)
    if num_classes >= 10:
        accuracy = top_k_accuracy_score(labels, logits.double(), k=5, labels=classes)
        assert measured.top5_error == pytest.approx(1 - accuracy, abs=1e-12)
    else:
        assert measured.top5_error is None


def test_the_top5_error_counts_classes_in_sixth_place_and_not_in_fifth():
    logits = torch.arange(10.0).flip(0).expand(10, 10)  # class i is in place i + 1
    counts = counts_of(logits, torch.arange(10))
    assert Report.from_counts(counts, names(10)).top5_error == 0.5
    assert Report.from_counts(counts, names(10)).error == 0.9


def test_equal_logits_have_the_loss_of_a_guess():
    counts = counts_of(torch.zeros(100, 8), torch.arange(100) % 8)
    assert Report.from_counts(counts, names(8)).loss == pytest.approx(torch.tensor(8.0).log().item())


def test_a_million_small_losses_are_not_lost_beside_a_large_one():
    counts = ConfusionCounts.zeros(2, CPU)
    counts.add(torch.tensor([[0.0, 1e9]]), torch.tensor([0]))
    for _ in range(100):
        counts.add(torch.zeros(100, 2), torch.zeros(100, dtype=torch.int64))
    assert counts.loss.item() - 1e9 == pytest.approx(10_000 * torch.tensor(2.0).log().item(), rel=1e-4)


def test_counts_of_two_processes_add_up_to_those_of_one():
    logits, labels = random_predictions(40, 12)
    whole = counts_of(logits, labels)
    first, second = counts_of(logits[:13], labels[:13]), counts_of(logits[13:], labels[13:])
    parts = ConfusionCounts(
        first.loss + second.loss, first.top5_misses + second.top5_misses, first.matrix + second.matrix
    )
    one, other = (Report.from_counts(counts, names(12)) for counts in (whole, parts))
    assert (one.error, one.top5_error, one.images) == (other.error, other.top5_error, 40)
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert torch.equal(one.confusion, other.confusion)


class Batches(list):
    num_images = 20


def test_the_network_runs_in_eval_mode_without_gradients():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 3))
    images, labels = torch.rand(20, 3, 2, 2), torch.arange(20) % 3
    batches = Batches(zip(images.split(8), labels.split(8), (8, 8, 4), strict=True))
    counts = count_confusions(network, batches, num_classes=3)
    expected = F.cross_entropy(network(images), labels, reduction="sum")
    assert counts.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not counts.loss.requires_grad
    assert counts.matrix.sum() == 20


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, capsys):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    batches = Batches([(torch.rand(10, 3, 2, 2), torch.zeros(10, dtype=torch.int64), 10)] * 2)
    count_confusions(network, batches, num_classes=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    count_confusions(network, batches, num_classes=3)
    assert "test images" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(value):
    counts = counts_of(torch.tensor([[0.0, value], [0.0, 0.0]]), torch.tensor([0, 0]))
    with pytest.raises(RunError, match="the test loss is NaN or infinite"):
        Report.from_counts(counts, names(2))


@pytest.mark.gpu
def test_no_batch_waits_for_the_device():
    device = torch.device("cuda")
    logits, labels = (values.to(device) for values in random_predictions(64, 100))
    counts = ConfusionCounts.zeros(100, device)
    counts.add(logits, labels)  # the first call may allocate and wait
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        torch.cuda.set_sync_debug_mode("error")
        counts.add(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts.matrix.cpu().tolist() == (2 * counts_of(logits.cpu(), labels.cpu()).matrix).tolist()
