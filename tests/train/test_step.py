"""One step: the gradient of a batch in parts, smoothed labels, and losses scaled for fp16."""

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import densenet_bc
from tests.support.tensor_measurements import frozen
from train.optim import make_optimizer
from train.replicas import replicate
from train.step import SMALLEST_SCALE, EndlessOverflow, Stepper

CPU = torch.device("cpu")


def batch(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype)
    return images, torch.randint(10, (n,), generator=generator)


def network(**settings):
    torch.manual_seed(0)
    return densenet_bc(10, 2, **settings)


def gradients_of_step(model, images, labels, **settings):
    optimizer = make_optimizer(model.parameters(), lr=0.1, momentum=0.9, wd=0)
    stepper = Stepper(model, optimizer, **settings)
    stepper.begin_epoch()
    stepper.take(images, labels, len(labels))
    return [parameter.grad for parameter in model.parameters()], stepper.metrics.read()


@pytest.mark.parametrize("accum_steps", [2, 3, 7])
@pytest.mark.parametrize("efficient", ["naive", "buffer"])
def test_parts_add_up_to_the_gradient_of_the_batch_where_norms_are_frozen(accum_steps, efficient):
    images, labels = batch(7)
    model = frozen(network(efficient=efficient).double())
    whole, of_whole = gradients_of_step(copy.deepcopy(model), images, labels)
    parts, of_parts = gradients_of_step(copy.deepcopy(model), images, labels, accum_steps=accum_steps)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert of_parts.loss == pytest.approx(of_whole.loss, rel=1e-12)
    assert of_parts.error == of_whole.error


def test_each_part_is_normalised_on_its_own_and_moves_running_statistics():
    images, labels = batch(7)
    ours, plain = network().double(), network().double()
    gradients, metrics = gradients_of_step(ours, images, labels, accum_steps=2)
    losses = [
        F.cross_entropy(plain(part), own, reduction="sum")
        for part, own in ((images[:4], labels[:4]), (images[4:], labels[4:]))
    ]
    (sum(losses) / 7).backward()
    for one, other in zip(gradients, plain.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-10, atol=1e-12)
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert metrics.loss == pytest.approx(sum(losses).item() / 7, rel=1e-12)


def test_a_batch_with_fewer_images_than_parts_is_taken_too():
    images, labels = batch(2)
    model = frozen(network().double())
    whole, _ = gradients_of_step(copy.deepcopy(model), images, labels)
    parts, metrics = gradients_of_step(copy.deepcopy(model), images, labels, accum_steps=5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert metrics.loss > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothed_labels_are_a_mixture_with_the_uniform_distribution(smoothing):
    images, labels = batch(5)
    model = network().double()
    expected = copy.deepcopy(model)
    _, metrics = gradients_of_step(model, images, labels, label_smoothing=smoothing)
    log_probabilities = expected(images).log_softmax(1)
    target = (1 - smoothing) * F.one_hot(labels, 10).double() + smoothing / 10
    loss = -(target * log_probabilities).sum(1).mean()
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-12)


def test_the_loss_of_mixed_labels_is_the_mean_over_both_and_its_error_counts_the_larger_share():
    images, labels = batch(6)
    model = frozen(network().double())
    answers = model(images).argmax(1)
    partners = (answers + 1) % 10
    labels[:3] = answers[:3]  # right answers, of the smaller share in one image
    labels[3:] = (answers[3:] + 2) % 10
    share = torch.tensor([1.0, 0.7, 0.4, 0.9, 0.6, 0.2]).double()
    mixed = share[:, None] * F.one_hot(labels, 10) + (1 - share)[:, None] * F.one_hot(partners, 10)
    whole, metrics = gradients_of_step(copy.deepcopy(model), images, mixed.float(), label_smoothing=0.1)
    each = [F.cross_entropy(model(images), own, reduction="none", label_smoothing=0.1) for own in (labels, partners)]
    assert metrics.loss == pytest.approx((share * each[0] + (1 - share) * each[1]).mean().item(), rel=1e-7)
    assert metrics.error == 4 / 6
    parts, of_parts = gradients_of_step(copy.deepcopy(model), images, mixed.float(), label_smoothing=0.1, accum_steps=4)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert of_parts.error == metrics.error


@pytest.mark.parametrize("limit", [1e-3, 0.2, 1e3])
@pytest.mark.parametrize("accum_steps", [1, 3])
def test_the_gradient_of_the_whole_batch_is_shortened_to_its_limit(limit, accum_steps):
    images, labels = batch(7)
    model = frozen(network().double())
    whole, _ = gradients_of_step(copy.deepcopy(model), images, labels)
    norm = np.sqrt(sum((gradient.numpy() ** 2).sum() for gradient in whole))
    assert 0.2 < norm < 1e3
    clipped, _ = gradients_of_step(copy.deepcopy(model), images, labels, accum_steps=accum_steps, clip_grad=limit)
    for one, other in zip(clipped, whole, strict=True):
        torch.testing.assert_close(one, other * min(1, limit / (norm + 1e-6)), rtol=1e-10, atol=1e-13)


class Scaled(nn.Module):
    """Logits whose gradients with respect to `weight` are as large as `size`."""

    def __init__(self, size=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.5]))
        self.size = size

    def forward(self, images):
        return (self.weight * self.size).half().float().expand(len(images), 2)


def fp16_stepper(model, **scale):
    optimizer = make_optimizer(model.parameters(), lr=0.1, momentum=0, wd=0)
    return Stepper(model, optimizer, torch.amp.GradScaler("cpu", **scale))


LABELS = torch.zeros(4, dtype=torch.long)
IMAGES = torch.zeros(4, 3, 8, 8)


def test_a_scaled_loss_gives_the_step_of_a_plain_one():
    ours, plain = Scaled(), Scaled()
    fp16_stepper(ours).take(IMAGES, LABELS, 4)
    Stepper(plain, make_optimizer(plain.parameters(), lr=0.1, momentum=0, wd=0)).take(IMAGES, LABELS, 4)
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-3, atol=0)
    assert not torch.equal(ours.weight, Scaled().weight)


def test_the_limit_of_the_gradient_is_one_for_the_gradient_that_is_not_scaled():
    ours, plain = Scaled(), Scaled()
    optimizer = make_optimizer(ours.parameters(), lr=0.1, momentum=0, wd=0)
    Stepper(ours, optimizer, torch.amp.GradScaler("cpu"), clip_grad=0.01).take(IMAGES, LABELS, 4)
    F.cross_entropy(plain(IMAGES), LABELS).backward()
    expected = plain.weight.detach() - 0.1 * 0.01 * plain.weight.grad / plain.weight.grad.norm()
    torch.testing.assert_close(ours.weight.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("clip_grad", [None, 0.1])
def test_a_step_that_overflows_is_skipped_and_is_no_failure(clip_grad):
    model = Scaled()
    stepper = fp16_stepper(model, init_scale=2.0**127)
    stepper.clip_grad = clip_grad
    stepper.begin_epoch()
    weights = []
    for _ in range(130):
        stepper.take(IMAGES, LABELS, 4)
        weights.append(model.weight.detach().clone())
    assert 90 < stepper.num_skipped() < 130  # until 0.5 / 4 * 2 ** n fits into fp16
    assert torch.equal(weights[stepper.num_skipped() - 1], Scaled().weight)
    assert not torch.equal(weights[-1], Scaled().weight)
    assert stepper.metrics.read().loss > 0
    stepper.begin_epoch()
    assert stepper.num_skipped() == 0


def test_a_first_step_that_overflows_leaves_no_trace_in_the_momentum(monkeypatch):
    # Memory that is not initialised holds NaN then.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    ours, plain = Scaled(), Scaled()
    optimizer = make_optimizer(ours.parameters(), lr=0.1, momentum=0.9, wd=0.01)
    stepper = Stepper(ours, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**18))
    stepper.take(IMAGES, LABELS, 4)
    assert stepper.num_skipped() == 1
    assert torch.equal(ours.weight, plain.weight)
    expected = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        stepper.take(IMAGES, LABELS, 4)
        expected.zero_grad()
        F.cross_entropy(plain(IMAGES), LABELS).backward()
        expected.step()
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-3, atol=0)


def test_gradients_that_overflow_at_any_scale_end_the_run():
    model = Scaled()
    stepper = fp16_stepper(model, init_scale=SMALLEST_SCALE)
    stepper.check_scale()
    model.register_parameter("bad", nn.Parameter(torch.ones(1)))
    stepper.optimizer.add_param_group({"params": [model.bad]})
    model.bad.register_hook(lambda grad: grad * torch.inf)
    model.forward = lambda images: (model.weight * model.bad).expand(len(images), 2)
    stepper.take(IMAGES, LABELS, 4)
    with pytest.raises(EndlessOverflow):
        stepper.check_scale()


@pytest.mark.parametrize("clip_grad", [None, 0.1])
def test_a_bad_loss_in_fp16_is_a_failure_and_stops_all_steps(clip_grad):
    model = Scaled()
    stepper = fp16_stepper(model)
    stepper.clip_grad = clip_grad
    good, bad = Scaled.forward, lambda images: model.weight.expand(len(images), 2) * torch.nan
    stepper.take(IMAGES, LABELS, 4)
    after_good = model.weight.detach().clone()
    model.forward = bad
    stepper.take(IMAGES, LABELS, 4)
    model.forward = lambda images: good(model, images)
    stepper.take(IMAGES, LABELS, 4)
    assert torch.equal(model.weight, after_good)
    assert stepper.metrics.failed == 1


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_convolutions_run_in_the_precision_and_logits_are_in_32_bits(precision, dtype):
    model = network(efficient=False)
    seen = []
    model.features.conv0.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    replicas = replicate(model, CPU, precision=precision)
    images, _ = batch(4, dtype=torch.float32)
    assert replicas.training(images).dtype == torch.float32
    assert seen == [dtype]
    assert replicas.network is model
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_threads_of_data_parallel_know_the_precision():
    """They begin without the autocast of the thread that starts them."""
    model, seen = network(efficient=False), []
    model.features.conv0.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    training = replicate(model, CPU, precision="bf16").training
    images, _ = batch(4, dtype=torch.float32)
    thread = threading.Thread(target=training, args=(images,))
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16]


def test_the_compiler_gets_what_is_called_and_names_stay(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model = network(efficient=False)
    replicas = replicate(model, CPU, precision="bf16", compile=True)
    assert compiled == [replicas.training]
    assert replicas.network is model


def test_an_empty_part_has_no_logits_and_gradients_of_zero():
    model = network()
    images, labels = batch(0, dtype=torch.float32)
    logits = replicate(model, CPU).training(images)
    assert logits.shape == (0, 10)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in model.parameters())
