"""Epochs with everything that can be changed in an image, put together again image by image."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as transform

from data.epoch_plan import PADDING, Augmentation, plan_epoch
from data.loader import Loader, Shard
from data.splits import Split
from data.trivial_augment import OPERATIONS
from tests.support.recorded_graph import Recorder

MEAN, STD = (0.3, 0.5, 0.7), (0.2, 0.25, 0.3)
ALONE = {"crop_border": "black", "trivial": True, "erasing": 0.5, "cutout": 5}  # changes that need no other image
EVERYTHING = ALONE | {"mixup": 0.4, "cutmix": 1.0}
NUM_IMAGES = 23


def images_in_memory():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (NUM_IMAGES, 3, 12, 10), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(7, (NUM_IMAGES,), generator=generator))


def loader_of(changes, split=None, **options):
    options = {"batch_size": 8, "seed": 3, "augment": True, "mean": MEAN, "std": STD, "num_classes": 7} | options
    return Loader(split or images_in_memory(), augmentation=Augmentation(**changes), **options)


def epoch_of(loader, number=2):
    batches = [*loader.epoch(number)]
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def assert_same(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


def cropped(pixels, top, left, mirrored, *, colour):
    """Pad, crop and flip one image as torchvision does, with a border of some colour."""
    height, width = pixels.shape[1:]
    window = transform.crop(transform.pad(pixels, [PADDING], fill=colour), top, left, height, width)
    return transform.horizontal_flip(window) if mirrored else window


@pytest.mark.parametrize(
    "changes", [EVERYTHING, EVERYTHING | {"crop_border": "mean"}, {"crop_border": "black"}], ids=str
)
def test_an_epoch_is_its_plan_image_by_image(changes):
    split, augmentation = images_in_memory(), Augmentation(**changes)
    plan = plan_epoch(NUM_IMAGES, seed=3, epoch=2, augmentation=augmentation, size=(12, 10))
    colour = [round(255 * mean) for mean in MEAN] if augmentation.crop_border == "mean" else [0, 0, 0]
    prepared = []
    for i, index in enumerate(plan.order.tolist()):
        pixels = split.images[index]
        pixels = cropped(pixels, int(plan.top[i]), int(plan.left[i]), bool(plan.flip[i]), colour=colour)
        if plan.operation is not None:
            operation = [*OPERATIONS.values()][plan.operation[i]]
            pixels = operation(pixels[None], plan.strength[i : i + 1])[0]
        image = transform.normalize(transform.to_dtype(pixels, torch.float32, scale=True), MEAN, STD).double()
        for rectangles in (plan.erased, plan.cutout):
            if rectangles is not None:
                top, bottom, left, right = rectangles[i].tolist()
                image[:, top:bottom, left:right] = 0
        prepared.append(image)
    images, labels = epoch_of(loader_of(changes))
    for start in range(0, NUM_IMAGES, 8):
        batch = range(start, min(start + 8, NUM_IMAGES))
        for i, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):  # the one before, in a ring
            expected, target = prepared[i], torch.zeros(7).double()
            share = 1.0
            if plan.mixing is not None:
                top, bottom, left, right = plan.mixing.rectangle[i].tolist()
                weight, share = float(plan.mixing.weight[i]), float(plan.mixing.label_weight[i])
                expected = weight * expected + (1 - weight) * prepared[other]
                expected[:, top:bottom, left:right] = prepared[other][:, top:bottom, left:right]
                target[split.labels[plan.order[other]]] += 1 - share
            target[split.labels[plan.order[i]]] += share
            torch.testing.assert_close(images[i].double(), expected, rtol=0, atol=5e-6)
            ours = labels[i].double() if labels.ndim == 2 else torch.eye(7).double()[labels[i]]
            torch.testing.assert_close(ours, target, rtol=0, atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(1, 30), st.integers(1, 5))
def test_an_epoch_is_the_same_for_any_number_of_processes(batch_size, world_size):
    make = partial(loader_of, EVERYTHING, batch_size=batch_size)
    whole = [*make().epoch(2)]
    shards = [[*make(shard=Shard(rank, world_size)).epoch(2)] for rank in range(world_size)]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert_same(batch[:2], [torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:2]])
        assert {part.size for part in parts} == {batch.size} == {len(batch.images)}


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(1, 30))
def test_changes_that_need_no_other_image_do_not_depend_on_the_batches(batch_size):
    assert_same(epoch_of(loader_of(ALONE, batch_size=batch_size)), epoch_of(loader_of(ALONE)))


def test_an_epoch_can_be_repeated_and_another_one_or_another_seed_differs():
    same = epoch_of(loader_of(EVERYTHING))
    assert_same(epoch_of(loader_of(EVERYTHING)), same)
    for other in (epoch_of(loader_of(EVERYTHING), 3), epoch_of(loader_of(EVERYTHING, seed=4))):
        assert not torch.equal(other[0], same[0])


@pytest.mark.parametrize("name", ["trivial", "erasing", "cutout", "mixup"])
def test_switching_one_change_off_leaves_the_choices_of_others(name):
    every, without = (
        plan_epoch(50, seed=1, epoch=1, augmentation=Augmentation(**changes), size=(12, 10))
        for changes in (EVERYTHING, EVERYTHING | {name: 0.0, "cutmix": EVERYTHING["cutmix"] * (name != "mixup")})
    )
    missing = set()
    for field, choices in vars(every).items():
        other = getattr(without, field)
        if other is None:
            missing.add(field)
        else:
            assert_same(*((one if isinstance(one, tuple) else (one,)) for one in (choices, other)))
    assert missing == {"trivial": {"operation", "strength"}, "erasing": {"erased"}, "mixup": {"mixing"}}.get(
        name, {name}
    )


def test_without_crops_images_are_changed_too():
    loader = loader_of({"cutout": 1}, augment=False)
    images, _ = epoch_of(loader)
    plain, _ = epoch_of(loader_of({}, augment=False))
    assert ((images == 0) & (plain != 0)).any(1).flatten(1).sum(1).tolist() == [1] * NUM_IMAGES


def test_evaluation_changes_nothing():
    for one, other in zip(loader_of(EVERYTHING), loader_of({}), strict=True):
        assert_same(one[:2], other[:2])
        assert one.labels.ndim == 1


def test_preparing_a_batch_waits_for_nothing():
    batches = loader_of(EVERYTHING).epoch(1)
    next(batches)  # choices are drawn and sorted before the first batch
    with Recorder() as recorder:  # fails where the device would be waited for
        next(batches)
    assert any(function.name().startswith("aten::index_copy") for function, *_ in recorder.calls)
