"""Crops of images, compared with torchvision's transforms and with closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms

from commands.networks import LARGEST_SMALL_IMAGES
from data.crops import AREAS, RATIOS, SMALL, middle_crop, random_crop
from tests.support.synthetic_images import picture

generated = settings(deadline=None, derandomize=True, max_examples=150)
sides = st.integers(1, 3000)


def test_networks_for_small_images_get_those_that_are_padded():
    assert SMALL == LARGEST_SMALL_IMAGES


@generated
@given(sides, sides, st.sampled_from([8, 32, 64, 65, 96, 224, 299]))
def test_the_middle_crop_lies_inside_and_is_square_in_the_resized_image(width, height, size):
    crop = middle_crop(width, height, size=size)
    left, top, right, bottom = crop.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert not crop.crop_first
    assert not crop.flip
    shorter = size if size <= SMALL else round(size * 256 / 224)
    expected = min(width, height) * size / shorter  # of the shorter side
    assert min(right - left, bottom - top) <= expected + 1e-6
    side = right - left if width <= height else bottom - top
    assert side == pytest.approx(expected)
    # The crop has the middle of the image, to half a pixel of the resized image.
    for low, high, whole in ((left, right, width), (top, bottom, height)):
        pixel = whole / int(shorter * whole / min(width, height))
        assert abs((low + high) / 2 - whole / 2) <= 0.5 * pixel + 1e-6


def test_an_image_of_the_right_size_is_left_alone():
    for size in (8, 32, 64):
        assert middle_crop(size, size, size=size).box == (0, 0, size, size)
    assert middle_crop(256, 256, size=224).box == (16, 16, 240, 240)
    assert middle_crop(500, 375, size=224).box == pytest.approx(
        (58 * 500 / 341, 16 * 375 / 256, 282 * 500 / 341, 240 * 375 / 256)
    )  # shorter side 256, longer 341; (341 - 224) / 2 is rounded to 58


@generated
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**63 - 1))
def test_a_random_crop_lies_inside_and_is_a_function_of_its_seed(width, height, seed):
    crop = random_crop(width, height, seed=seed)
    assert random_crop(width, height, seed=seed) == crop
    left, top, right, bottom = crop.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert all(isinstance(edge, int) for edge in crop.box)
    assert crop.crop_first


def test_random_crops_have_the_distribution_of_torchvisions():
    """Areas, ratios, positions and flips: means of 4,000 crops, which differ by a few standard errors at most."""
    width, height, number = 500, 375, 4000
    ours = [random_crop(width, height, seed=seed) for seed in range(number)]
    image = picture(width, height)
    torch.manual_seed(0)
    theirs = []
    for _ in range(number):
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, AREAS, RATIOS)
        theirs.append((left, top, left + w, top + h))

    def numbers(boxes):
        for left, top, right, bottom in boxes:
            w, h = right - left, bottom - top
            yield w * h / (width * height), math.log(w / h), (left + right) / 2 / width, (top + bottom) / 2 / height

    mine, other = (torch.tensor(list(numbers(boxes))) for boxes in ([crop.box for crop in ours], theirs))
    error = mine.std(0) * (2 / number) ** 0.5  # of the difference of two means
    assert ((mine.mean(0) - other.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(mine.std(0), other.std(0), rtol=0.06, atol=0)
    flips = sum(crop.flip for crop in ours)
    assert abs(flips - number / 2) < 4 * (number / 4) ** 0.5


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1000, 10, (493, 0, 506, 10)), (10, 1000, (0, 493, 10, 506))]
)
def test_a_strip_that_no_drawn_crop_fits_into_gives_the_largest_allowed_in_its_middle(width, height, expected):
    crops = [random_crop(width, height, seed=seed) for seed in range(30)]
    assert {crop.box for crop in crops} == {expected}
    assert {crop.flip for crop in crops} == {True, False}
