import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.datasets import DATASETS
from data.epoch_plan import PADDING, plan_epoch
from data.errors import DataError
from data.loader import Loader, Shard, make_loaders, make_test_loader
from data.splits import Dataset, Split

WINDOWS = 2 * PADDING + 1  # in each direction
raw_loader = partial(Loader, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # normalised pixels are the pixels


def numbered_split(num_images, *, size=2, start=0):
    """Return images whose first pixel holds their number in base 256, with labels that are a function of it."""
    numbers = torch.arange(start, start + num_images)
    images = torch.zeros(num_images, 3, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = numbers % 256, numbers // 256
    return Split(images, numbers % 7)


def numbers_of(images):
    pixels = images.round().long()
    return pixels[:, 0, 0, 0] + 256 * pixels[:, 1, 0, 0]


def mapped_split(num_images):
    """Return images whose pixels hold their own position: row + 1, column + 1, and the number of the image + 1."""
    images = torch.empty(num_images, 3, 32, 32, dtype=torch.uint8)
    places = torch.arange(1, 33, dtype=torch.uint8)
    images[:, 0] = places[:, None]
    images[:, 1] = places
    images[:, 2] = torch.arange(1, num_images + 1, dtype=torch.uint8)[:, None, None]
    return Split(images, torch.arange(num_images) % 10)


def crops_of(images):
    """Return top, left and flip of augmented `mapped_split` images, read from their pixels."""
    crops = []
    for rows, columns, _ in images.round().long():
        y, x = 16, 16  # every window holds the middle of the image
        mirrored = bool(columns[y, x] > columns[y, x + 1])
        column = (31 - x) if mirrored else x
        crops.append((int(rows[y, x]) - 1 - y + PADDING, int(columns[y, x]) - 1 - column + PADDING, mirrored))
    return crops


def whole_epoch(loader, number):
    batches = list(loader.epoch(number))
    return torch.cat([images for images, _, _ in batches]), torch.cat([labels for _, labels, _ in batches])


def chi_square(counts):
    """Return the chi-square statistic of counts that should be equal: near their number if they are uniform."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("limit", [None, 3])
def test_the_rest_of_an_epoch_is_that_of_the_whole(limit):
    for rank in range(2):
        loader = raw_loader(mapped_split(33), batch_size=8, seed=1, augment=True, shard=Shard(rank, 2), limit=limit)
        whole = list(loader.epoch(2))
        for first in range(len(loader) + 1):
            rest = list(loader.epoch(2, first_batch=first))
            assert len(rest) == len(loader) - first
            for ours, expected in zip(rest, whole[first:], strict=True):
                assert torch.equal(ours.images, expected.images)
                assert torch.equal(ours.labels, expected.labels)
                assert ours.size == expected.size


def test_plan_is_a_function_of_seed_and_epoch():
    plans = {(seed, epoch): plan_epoch(50, seed=seed, epoch=epoch) for seed in (0, 1, 10) for epoch in (1, 2, 11)}
    for (seed, epoch), plan in plans.items():
        again = plan_epoch(50, seed=seed, epoch=epoch)
        for name in ("order", "top", "left", "flip", "seed"):
            assert torch.equal(getattr(plan, name), getattr(again, name)), name
    for name in ("order", "top", "left", "flip"):
        assert len({tuple(vars(plan)[name].tolist()) for plan in plans.values()}) == len(plans), name


def test_two_loaders_with_one_seed_give_the_same_augmented_batches():
    split = mapped_split(40)
    ours, other = (raw_loader(split, batch_size=16, seed=3, augment=True) for _ in range(2))
    for number in (5, 2):  # in any sequence
        for one, two in zip(whole_epoch(ours, number), whole_epoch(other, number), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(whole_epoch(ours, 1)[0], whole_epoch(ours, 2)[0])
    other_seed = raw_loader(split, batch_size=16, seed=4, augment=True)
    assert not torch.equal(whole_epoch(ours, 1)[0], whole_epoch(other_seed, 1)[0])


def test_global_generators_are_neither_used_nor_changed():
    split = mapped_split(20)
    loader = raw_loader(split, batch_size=8, augment=True)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
        results.append(whole_epoch(loader, 1)[0])
        list(loader)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before[1:]
    assert torch.equal(*results)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 23, 100])
def test_each_image_comes_once_an_epoch_with_its_label(batch_size):
    split = numbered_split(23, start=300)
    loader = raw_loader(split, batch_size=batch_size)
    batches = list(loader.epoch(1))
    whole, rest = divmod(23, batch_size)
    assert [len(labels) for _, labels, _ in batches] == [batch_size] * whole + [rest] * (rest > 0)
    assert len(loader) == len(batches)
    assert loader.num_images == 23
    numbers = torch.cat([numbers_of(images) for images, _, _ in batches])
    assert sorted(numbers.tolist()) == list(range(300, 323))
    assert numbers.tolist() != list(range(300, 323))
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), numbers % 7)


def test_augmented_images_keep_their_labels():
    split = mapped_split(60)
    images, labels = whole_epoch(raw_loader(split, batch_size=16, augment=True), 1)
    number_of_each = images[:, 2].amax((1, 2)).round().long() - 1
    assert sorted(number_of_each.tolist()) == list(range(60))
    assert torch.equal(labels, split.labels[number_of_each])


def test_augmented_batches_are_the_planned_crops_and_flips():
    split = mapped_split(50)
    images, _ = whole_epoch(raw_loader(split, batch_size=16, seed=9, augment=True), 4)
    plan = plan_epoch(50, seed=9, epoch=4)
    assert crops_of(images) == list(zip(plan.top.tolist(), plan.left.tolist(), plan.flip.tolist(), strict=True))
    for image, place, (top, left, mirrored) in zip(images, plan.order, crops_of(images), strict=True):
        window = F.pad(split.images[place], (PADDING,) * 4)[:, top : top + 32, left : left + 32]
        assert torch.equal(image.round(), (window.flip(-1) if mirrored else window).float())


def test_batches_hold_every_crop_and_about_as_many_flips_as_not():
    loader = raw_loader(mapped_split(250), batch_size=64, augment=True)
    crops = [crop for number in range(1, 5) for crop in crops_of(whole_epoch(loader, number)[0])]
    assert {top for top, _, _ in crops} == {left for _, left, _ in crops} == set(range(WINDOWS))
    assert len({crop[:2] for crop in crops}) == WINDOWS**2
    assert abs(sum(mirrored for _, _, mirrored in crops) - 500) < 4 * (1000 / 4) ** 0.5


def test_crops_and_flips_are_uniform_and_independent():
    plan = plan_epoch(100_000, seed=0, epoch=1)
    joint = (plan.top * WINDOWS + plan.left) * 2 + plan.flip
    counts = joint.bincount(minlength=2 * WINDOWS**2).tolist()
    freedom = len(counts) - 1
    assert freedom == 2 * 81 - 1
    assert abs(chi_square(counts) - freedom) < 4 * (2 * freedom) ** 0.5  # its variance is twice its degrees of freedom


def test_iterating_is_in_order_and_never_augmented():
    split = mapped_split(50)
    loader = raw_loader(split, batch_size=16, augment=True)
    for _ in range(2):
        batches = list(loader)
        assert [len(labels) for _, labels, _ in batches] == [16, 16, 16, 2]
        assert torch.equal(torch.cat([images for images, _, _ in batches]).round(), split.images.float())
        assert torch.equal(torch.cat([labels for _, labels, _ in batches]), split.labels)


def test_without_augmentation_an_epoch_only_shuffles():
    split = mapped_split(50)
    images, labels = whole_epoch(raw_loader(split, batch_size=16, augment=False), 1)
    order = images[:, 2, 0, 0].round().long() - 1
    assert torch.equal(images.round(), split.images[order].float())
    assert torch.equal(labels, split.labels[order])


@pytest.mark.parametrize("num_images", [1, 16, 23, 100])
def test_a_limit_gives_the_first_batches_of_the_whole_epoch(num_images):
    split = numbered_split(num_images)
    whole, limited = (raw_loader(split, batch_size=8, seed=2, limit=limit) for limit in (None, 2))
    assert (limited.num_images, len(limited)) == (min(num_images, 16), min(2, len(whole)))
    for batches, all_batches in ((limited.epoch(3), whole.epoch(3)), (iter(limited), iter(whole))):
        ours, first = list(batches), list(all_batches)[:2]
        assert sum(batch.size for batch in ours) == limited.num_images
        for one, other in zip(ours, first, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("augment", [False, True])
def test_batches_are_float32_normalised_by_the_given_statistics(augment):
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    split = Split(torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1).expand(9, 3, 32, 32), torch.zeros(9))
    loader = Loader(split, batch_size=4, mean=mean, std=std, augment=augment)
    expected = torch.tensor([(0.2 - 0.1) / 0.2, (0.4 - 0.5) / 0.3, (0.8 - 0.9) / 0.4])
    for batch, _, _ in [*loader, *loader.epoch(1)]:
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (3, 32, 32)
        middle = batch[:, :, 16, 16]
        torch.testing.assert_close(middle, expected.expand_as(middle), rtol=0, atol=1e-6)


def test_borders_of_augmented_images_have_the_mean_colour():
    """With white images each pixel is either white or in the border; black would be -mean / std."""
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    split = Split(torch.full((30, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(30))
    images, _ = whole_epoch(Loader(split, batch_size=8, mean=mean, std=std, seed=2, augment=True), 1)
    plan = plan_epoch(30, seed=2, epoch=1)
    inside = (32 - (plan.top - PADDING).abs()) * (32 - (plan.left - PADDING).abs())
    assert inside.min() < 32 * 32
    for channel in range(3):
        pixels = images[:, channel].flatten(1)
        white = (1 - mean[channel]) / std[channel]
        assert torch.equal((pixels == 0).sum(1), 32 * 32 - inside)
        assert torch.equal(((pixels - white).abs() < 1e-5).sum(1), inside)


CPU = torch.device("cpu")


def loaders_of(dataset, *, augment=True, seed=0, name="cifar10", **options):
    return make_loaders(dataset, DATASETS[name], CPU, batch_size=8, augment=augment, seed=seed, **options)


def numbered_dataset(*, size=2):
    return Dataset(numbered_split(40, size=size), numbered_split(11, size=size, start=100), tuple("0123456"))


def raw_numbers(loader):
    return numbers_of(loader.split.images).tolist()


def test_make_loaders_without_validation_images():
    train, valid, test = loaders_of(numbered_dataset(), valid_size=0)
    assert valid is None
    assert raw_numbers(train) == list(range(40))
    assert raw_numbers(test) == list(range(100, 111))


def test_validation_and_training_images_are_disjoint_and_together_all():
    train, valid, test = loaders_of(numbered_dataset(), valid_size=12)
    assert (train.num_images, valid.num_images, test.num_images) == (28, 12, 11)
    assert sorted(raw_numbers(train) + raw_numbers(valid)) == list(range(40))
    assert raw_numbers(test) == list(range(100, 111))
    for loader in (train, valid, test):
        assert loader.split.labels.tolist() == [number % 7 for number in raw_numbers(loader)]


def test_seed_decides_the_validation_images_and_the_order():
    one, same, other = (loaders_of(numbered_dataset(), valid_size=12, seed=seed) for seed in (5, 5, 6))
    assert raw_numbers(one[1]) == raw_numbers(same[1])
    assert raw_numbers(one[1]) != raw_numbers(other[1])
    assert torch.equal(whole_epoch(one[0], 1)[0], whole_epoch(same[0], 1)[0])
    assert not torch.equal(whole_epoch(one[0], 1)[0], whole_epoch(other[0], 1)[0])


@pytest.mark.parametrize("augment", [False, True])
def test_only_training_batches_are_augmented(augment):
    dataset = Dataset(mapped_split(40), mapped_split(11), tuple("0123456789"))
    train, valid, test = loaders_of(dataset, valid_size=12, augment=augment, name="svhn")  # divides by 255 only
    batches = whole_epoch(train, 1)[0] * 255
    middle = (PADDING, PADDING, False)
    assert all(crop == middle for crop in crops_of(batches)) != augment
    for loader in (valid, test):
        images = torch.cat([images for images, _, _ in loader]) * 255
        assert torch.equal(images.round(), loader.split.images.float())


def test_every_loader_normalises_as_the_data_set_says():
    loaders = loaders_of(numbered_dataset(size=32), valid_size=12, augment=False, name="cifar100")
    spec = DATASETS["cifar100"]
    for loader in loaders:
        images = torch.cat([images for images, _, _ in loader])
        expected = loader.split.images.double() / 255
        expected = (expected - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
        torch.testing.assert_close(images.double(), expected, rtol=0, atol=2e-6)


def test_a_data_set_with_validation_images_of_its_own_trains_on_all_others():
    own = Dataset(numbered_split(40), numbered_split(11, start=100), ("a",), valid=numbered_split(5))
    train, valid, test = loaders_of(own, valid_size=None)
    assert [raw_numbers(loader) for loader in (train, valid, test)] == [[*range(40)], [*range(5)], [*range(100, 111)]]
    with pytest.raises(DataError, match="has 5 validation images of its own"):
        loaders_of(own, valid_size=3)


def test_the_loader_of_test_images_alone_is_that_of_make_loaders():
    dataset = numbered_dataset()
    alone = make_test_loader(dataset, DATASETS["cifar10"], CPU, batch_size=8)
    for one, other in zip(alone, loaders_of(dataset, valid_size=0)[2], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_limit_and_shard_hold_for_every_loader():
    loaders = loaders_of(numbered_dataset(), valid_size=12, limit=1, shard=Shard(1, 3))
    assert [loader.num_images for loader in loaders] == [8, 8, 8]
    for loader in loaders:
        assert [(len(batch.labels), batch.size) for batch in loader] == [(3, 8)]


def test_too_many_validation_images_are_refused():
    with pytest.raises(DataError, match=r"--valid_size is 40, .*below 40"):
        loaders_of(numbered_dataset(), valid_size=40)
