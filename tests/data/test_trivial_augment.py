"""TrivialAugment against torchvision's, image by image."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as transform

from data.trivial_augment import LEVELS, OPERATIONS, STRENGTHS, draw_operations, sort_by_operation, trivial_augment

EVERY_STRENGTH = torch.arange(STRENGTHS)
# Theirs adds fused products, so that a value close to a whole number may be cut to the one below it, or ours may.
OFF_BY_ONE = {"brightness": 0.002, "color": 0.004, "sharpness": 0.0005}


def random_pixels(n, channels, size, *, low=0, high=256):
    generator = torch.Generator().manual_seed(size + channels + low)
    return torch.randint(low, high, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def affine(image, *, x=0, y=0, shear_x=0.0, shear_y=0.0, **options):
    shear = [math.degrees(math.atan(slope)) for slope in (shear_x, shear_y)]
    return transform.affine(image, angle=0.0, translate=[x, y], scale=1.0, shear=shear, **options)


# The wide space of the paper: the change at each level, whether it has a direction, and how torchvision makes it.
ZERO_TO = {most: torch.linspace(0, most, 31).tolist() for most in (0.99, 32.0, 135.0)}
BITS = [8 - round(level / 5) for level in range(31)]
THRESHOLDS = [255 * value for value in torch.linspace(1, 0, 31).tolist()]
NONE = [0.0] * 31
TORCHVISION_S = {
    "identity": (NONE, False, lambda image, _: image),
    "shear_x": (ZERO_TO[0.99], True, lambda image, slope: affine(image, shear_x=slope, center=[0, 0])),
    "shear_y": (ZERO_TO[0.99], True, lambda image, slope: affine(image, shear_y=slope, center=[0, 0])),
    "translate_x": (ZERO_TO[32.0], True, lambda image, shift: affine(image, x=int(shift))),
    "translate_y": (ZERO_TO[32.0], True, lambda image, shift: affine(image, y=int(shift))),
    "rotate": (ZERO_TO[135.0], True, transform.rotate),
    "brightness": (ZERO_TO[0.99], True, lambda image, change: transform.adjust_brightness(image, 1 + change)),
    "color": (ZERO_TO[0.99], True, lambda image, change: transform.adjust_saturation(image, 1 + change)),
    "contrast": (ZERO_TO[0.99], True, lambda image, change: transform.adjust_contrast(image, 1 + change)),
    "sharpness": (ZERO_TO[0.99], True, lambda image, change: transform.adjust_sharpness(image, 1 + change)),
    "posterize": (BITS, False, transform.posterize),
    "solarize": (THRESHOLDS, False, transform.solarize),
    "autocontrast": (NONE, False, lambda image, _: transform.autocontrast(image)),
    "equalize": (NONE, False, lambda image, _: transform.equalize(image)),
}


def torchvision_s(name, images):
    """Change image i by the operation with strength i, as torchvision does."""
    changes, is_signed, function = TORCHVISION_S[name]
    signs = (1, -1) if is_signed else (1, 1)
    return torch.stack([function(image, changes[i // 2] * signs[i % 2]) for i, image in enumerate(images)])


def ours(name, images, strengths=EVERY_STRENGTH):
    index = [*OPERATIONS].index(name)
    counts = [len(images) if i == index else 0 for i in range(len(OPERATIONS))]
    return trivial_augment(images, torch.arange(len(images)), counts, strengths)


def test_there_are_the_operations_and_levels_of_the_paper():
    assert [*OPERATIONS] == [*TORCHVISION_S]
    assert (LEVELS, STRENGTHS) == (31, 62)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (3, 9), (1, 32)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_strength_agrees_with_torchvision(name, channels, size):
    for low, high in ((0, 256), (60, 200)):
        images = random_pixels(STRENGTHS, channels, size, low=low, high=high)
        changed, expected = ours(name, images), torchvision_s(name, images)
        assert changed.dtype == torch.uint8
        difference = (changed.int() - expected.int()).abs()
        assert difference.max() <= (name in OFF_BY_ONE)
        assert difference.float().mean() <= OFF_BY_ONE.get(name, 0)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_larger_images_differ_only_where_a_point_is_between_two_pixels(name):
    """At 45 and 135 degrees, and in row 62, points lie in the middle between pixels, where rounding decides."""
    images = random_pixels(STRENGTHS, 1, 72)
    differs = (ours(name, images) != torchvision_s(name, images)).flatten(1).float().mean(1)
    level = torch.arange(STRENGTHS) // 2
    between = (level == 10) | (level == 30) if name == "rotate" else (level == 8) | (level == 24)
    assert differs[~between].max() == 0
    assert differs.max() < 0.03


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "sharpness"])
def test_images_of_few_colours_agree_with_torchvision(name):
    images = random_pixels(STRENGTHS, 3, 12, low=7, high=9)
    images[:20] = 7  # one colour
    images[20:40, :, :, :4] = 255
    difference = (ours(name, images).int() - torchvision_s(name, images).int()).abs()
    assert difference.max() <= (name in OFF_BY_ONE)


def test_tiny_images_are_not_sharpened():
    images = random_pixels(STRENGTHS, 3, 2)
    assert torch.equal(ours("sharpness", images), images)


def test_the_weakest_strength_changes_nothing():
    images = random_pixels(2, 3, 32, high=255)  # white is above the highest threshold
    for name in OPERATIONS.keys() - {"autocontrast", "equalize"}:
        assert torch.equal(ours(name, images, torch.tensor([0, 1])), images), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_its_images_one_by_one(memory_format):
    images = random_pixels(50, 3, 16)
    before = images.clone()
    operations, strengths = draw_operations(50, torch.Generator().manual_seed(3))
    members, (counts,) = sort_by_operation(operations, [slice(0, 50)])
    changed = trivial_augment(images.contiguous(memory_format=memory_format), members, counts, strengths)
    names = [*OPERATIONS]
    for i, operation in enumerate(operations.tolist()):
        one = ours(names[operation], images[i : i + 1], strengths[i : i + 1])
        assert torch.equal(changed[i : i + 1], one), names[operation]
    assert torch.equal(images, before)


def test_sorting_lists_each_image_of_a_batch_once_by_operation():
    operations, _ = draw_operations(100, torch.Generator().manual_seed(1))
    batches = [slice(0, 64), slice(64, 64), slice(64, 97), slice(97, 100)]
    members, counts = sort_by_operation(operations, batches)
    for batch, of_each in zip(batches, counts, strict=True):
        mine = members[batch]
        assert sorted(mine.tolist()) == list(range(batch.stop - batch.start))
        assert torch.equal(operations[batch][mine], operations[batch].sort().values)
        assert of_each == operations[batch].bincount(minlength=len(OPERATIONS)).tolist()


def test_no_images_stay_none():
    none = torch.zeros(0, dtype=torch.long)
    assert trivial_augment(random_pixels(0, 3, 8), none, [0] * len(OPERATIONS), none).shape == (0, 3, 8, 8)
    assert sort_by_operation(none, [slice(0, 0)])[1] == [[0] * len(OPERATIONS)]


def test_operations_and_strengths_are_uniform_and_independent():
    operations, strengths = draw_operations(100_000, torch.Generator().manual_seed(0))
    cells = len(OPERATIONS) * STRENGTHS
    counts = (operations * STRENGTHS + strengths).bincount(minlength=cells).double()
    expected = 100_000 / cells
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert len(counts) == cells == 14 * 62
    assert abs(chi_square - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))
