"""Mixup and cutmix: draws against their distributions, mixtures against torchvision's and closed forms."""

from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from data.mixing import Mixing, draw_mixing, mix
from data.rectangles import mask_of

SIZE = (32, 24)


def drawn(n, *, mixup=0.0, cutmix=0.0, seed=0):
    return draw_mixing(n, mixup=mixup, cutmix=cutmix, size=SIZE, generator=torch.Generator().manual_seed(seed))


def areas_of(mixing):
    return mask_of(mixing.rectangle, *SIZE).flatten(1).sum(1)


def batch(n, num_classes=5):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, *SIZE, generator=generator), torch.randint(num_classes, (n,), generator=generator)


@pytest.mark.parametrize("a", [0.2, 1.0])
def test_weights_of_mixup_have_their_distribution_and_no_rectangle(a):
    mixing = drawn(4000, mixup=a)
    assert stats.kstest(mixing.weight.double().numpy(), stats.beta(a, a).cdf).pvalue > 0.01
    assert torch.equal(mixing.label_weight, mixing.weight)
    assert not areas_of(mixing).any()


@pytest.mark.parametrize("a", [0.2, 1.0])
def test_rectangles_of_cutmix_are_drawn_as_torchvision_draws_them(a):
    torch.manual_seed(0)
    reference = v2.CutMix(alpha=a, num_classes=5)
    theirs = [reference.make_params([torch.zeros(2, 3, *SIZE)]) for _ in range(1500)]
    mixing = drawn(1500, cutmix=a)
    assert stats.ks_2samp(mixing.label_weight.numpy(), [one["lam_adjusted"] for one in theirs]).pvalue > 0.01
    ours = mixing.rectangle[areas_of(mixing) > 0].numpy()
    boxes = [one["box"] for one in theirs if one["lam_adjusted"] < 1]  # x1, y1, x2, y2
    for place, its_place in enumerate((1, 3, 0, 2)):
        assert stats.ks_2samp(ours[:, place], [box[its_place] for box in boxes]).pvalue > 0.01


def test_labels_of_cutmix_have_the_weight_of_the_pixels_that_are_kept():
    mixing = drawn(500, cutmix=1.0)
    kept = 1 - areas_of(mixing).double() / (SIZE[0] * SIZE[1])
    torch.testing.assert_close(mixing.label_weight.double(), kept, rtol=0, atol=1e-7)
    assert torch.equal(mixing.weight, torch.ones(500))
    assert 0 < kept.min() < 0.2


def test_each_image_gets_one_of_both():
    mixing = drawn(2000, mixup=1.0, cutmix=1.0)
    is_cutmix = mixing.weight == 1
    assert not areas_of(mixing)[~is_cutmix].any()
    assert abs(int(is_cutmix.sum()) - 1000) < 4 * 500**0.5


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_batch_with_one_weight_is_torchvision_s_mixup(weight):
    images, labels = batch(6)
    reference = v2.MixUp(alpha=1.0, num_classes=5)
    reference._dist = SimpleNamespace(sample=lambda _: torch.tensor(weight))
    expected_images, expected_labels = reference(images, labels)
    weights = torch.full((7,), weight)
    ring = torch.cat([images[-1:], images]), torch.cat([labels[-1:], labels])
    mixed, probabilities = mix(*ring, Mixing(weights, torch.zeros(7, 4).long(), weights), num_classes=5)
    torch.testing.assert_close(mixed, expected_images, rtol=0, atol=1e-6)
    torch.testing.assert_close(probabilities, expected_labels, rtol=0, atol=1e-7)


def test_each_image_is_mixed_on_its_own():
    images, labels = batch(40)
    mixing = drawn(40, mixup=0.4, cutmix=1.0)
    before = images.clone()
    mixed, probabilities = mix(images, labels, mixing, num_classes=5)
    for i in range(1, 40):
        top, bottom, left, right = mixing.rectangle[i].tolist()
        weight, share = float(mixing.weight[i]), float(mixing.label_weight[i])
        expected = weight * images[i].double() + (1 - weight) * images[i - 1].double()
        expected[:, top:bottom, left:right] = images[i - 1, :, top:bottom, left:right].double()
        torch.testing.assert_close(mixed[i - 1].double(), expected, rtol=0, atol=1e-6)
        target = torch.zeros(5).double()
        target[labels[i]] += share
        target[labels[i - 1]] += 1 - share
        torch.testing.assert_close(probabilities[i - 1].double(), target, rtol=0, atol=1e-7)
    assert torch.equal(images, before)


@pytest.mark.parametrize("n", [0, 1])
def test_without_an_image_but_the_partner_there_is_nothing_to_mix(n):
    images, labels = batch(n)
    mixed, probabilities = mix(images, labels, drawn(n, mixup=1.0), num_classes=5)
    assert (mixed.shape, probabilities.shape) == ((0, 3, *SIZE), (0, 5))


def test_the_smallest_parameters_leave_images_as_they_are_or_replace_them():
    assert {*drawn(200, mixup=1e-6).weight.tolist()} == {0.0, 1.0}
