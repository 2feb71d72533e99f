"""Sums over a test set, against scikit-learn, closed forms and PyTorch in 64 bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from commands.evaluate.confusion_counts import Tally, tally
from commands.evaluate.report import Evaluation
from train.errors import RunError

CPU = torch.device("cpu")


def make_answers(num_images, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_images,), generator=generator)


def sums_of(logits, labels, *, batch_size=7):
    sums = Tally.empty(logits.shape[1], CPU)
    for answers, truths in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        sums.add(answers, truths)
    return sums


def names(num_classes):
    return tuple(f"class {i}" for i in range(num_classes))


@given(st.integers(1, 60), st.integers(2, 25), st.integers(0, 1000))
def test_sums_are_those_of_scikit_learn(num_images, num_classes, seed):
    logits, labels = make_answers(num_images, num_classes, seed)
    classes = list(range(num_classes))
    measured = Evaluation.of(sums_of(logits, labels), names(num_classes))
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


def test_five_guesses_find_what_is_fifth_and_miss_what_is_sixth():
    logits = torch.arange(10.0).flip(0).expand(10, 10)  # class i is in place i + 1
    sums = sums_of(logits, torch.arange(10))
    assert Evaluation.of(sums, names(10)).top5_error == 0.5
    assert Evaluation.of(sums, names(10)).error == 0.9


def test_equal_logits_have_the_loss_of_a_guess():
    sums = sums_of(torch.zeros(100, 8), torch.arange(100) % 8)
    assert Evaluation.of(sums, names(8)).loss == pytest.approx(torch.tensor(8.0).log().item())


def test_a_million_small_losses_are_not_lost_beside_a_large_one():
    sums = Tally.empty(2, CPU)
    sums.add(torch.tensor([[0.0, 1e9]]), torch.tensor([0]))
    for _ in range(100):
        sums.add(torch.zeros(100, 2), torch.zeros(100, dtype=torch.int64))
    assert sums.loss.item() - 1e9 == pytest.approx(10_000 * torch.tensor(2.0).log().item(), rel=1e-4)


def test_sums_of_two_processes_add_up_to_those_of_one():
    logits, labels = make_answers(40, 12)
    whole = sums_of(logits, labels)
    first, second = sums_of(logits[:13], labels[:13]), sums_of(logits[13:], labels[13:])
    parts = Tally(first.loss + second.loss, first.missed + second.missed, first.confusion + second.confusion)
    one, other = (Evaluation.of(sums, names(12)) for sums in (whole, parts))
    assert (one.error, one.top5_error, one.images) == (other.error, other.top5_error, 40)
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert torch.equal(one.confusion, other.confusion)


class Images(list):
    num_images = 20


def test_the_network_is_asked_in_eval_mode_without_gradients():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 3))
    images, labels = torch.rand(20, 3, 2, 2), torch.arange(20) % 3
    batches = Images(zip(images.split(8), labels.split(8), (8, 8, 4), strict=True))
    sums = tally(network, batches, num_classes=3)
    expected = F.cross_entropy(network(images), labels, reduction="sum")
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not sums.loss.requires_grad
    assert sums.confusion.sum() == 20


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, capsys):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    batches = Images([(torch.rand(10, 3, 2, 2), torch.zeros(10, dtype=torch.int64), 10)] * 2)
    tally(network, batches, num_classes=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    tally(network, batches, num_classes=3)
    assert "test images" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error(value):
    sums = sums_of(torch.tensor([[0.0, value], [0.0, 0.0]]), torch.tensor([0, 0]))
    with pytest.raises(RunError, match="the test loss is NaN or infinite"):
        Evaluation.of(sums, names(2))


@pytest.mark.gpu
def test_no_batch_waits_for_the_device():
    device = torch.device("cuda")
    logits, labels = (values.to(device) for values in make_answers(64, 100))
    sums = Tally.empty(100, device)
    sums.add(logits, labels)  # the first call may allocate and wait
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        torch.cuda.set_sync_debug_mode("error")
        sums.add(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.confusion.cpu().tolist() == (2 * sums_of(logits.cpu(), labels.cpu()).confusion).tolist()
