"""Random erasing and cutout: where rectangles lie, against closed forms and torchvision's draws."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transform

from data.rectangles import around, draw_erasing, draw_middles, draw_squares, erase, mask_of

SIZE = (32, 24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_erasing_takes_rectangles_inside_the_image_of_the_paper_s_areas_and_ratios():
    rectangles = draw_erasing(20_000, 1.0, size=SIZE, generator=generator())
    top, bottom, left, right = rectangles.double().unbind(1)
    height, width = bottom - top, right - left
    assert min(top.min(), left.min()) == 0
    assert bottom.max() == SIZE[0]
    assert right.max() == SIZE[1]
    assert height.max() < SIZE[0]
    assert width.max() < SIZE[1]
    # Rounding moves a side by half a pixel.
    pixels = SIZE[0] * SIZE[1]
    assert ((height - 0.5) * (width - 0.5) <= 0.33 * pixels).all()
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * pixels).all()
    assert ((height - 0.5) / (width + 0.5) <= 3.3).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all()


def test_erasing_draws_areas_heights_and_places_as_torchvision_does():
    torch.manual_seed(0)
    reference = v2.RandomErasing(p=1.0)
    image = torch.zeros(3, *SIZE)
    drawn = [reference.make_params([image]) for _ in range(1500)]
    theirs = np.array([(one["i"], one["i"] + one["h"], one["j"], one["j"] + one["w"]) for one in drawn])
    ours = draw_erasing(1500, 1.0, size=SIZE, generator=generator(1)).numpy()
    for values in (
        lambda r: (r[:, 1] - r[:, 0]) * (r[:, 3] - r[:, 2]),
        lambda r: r[:, 1] - r[:, 0],
        lambda r: r[:, 0],
        lambda r: r[:, 2],
    ):
        assert stats.ks_2samp(values(ours), values(theirs)).pvalue > 0.01


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_erasing_takes_something_with_its_probability(probability):
    rectangles = draw_erasing(10_000, probability, size=SIZE, generator=generator())
    num_erased = int((rectangles[:, 1] > rectangles[:, 0]).sum())
    assert abs(num_erased - 10_000 * probability) <= 4 * (10_000 * probability * (1 - probability)) ** 0.5


def test_nothing_is_erased_where_no_rectangle_is_smaller_than_the_image():
    rectangles = draw_erasing(100, 1.0, size=(1, 1), generator=generator())
    assert not mask_of(rectangles, 1, 1).any()


def test_middles_are_uniform():
    middles = draw_middles(50_000, size=(5, 7), generator=generator())
    counts = (middles[:, 0] * 7 + middles[:, 1]).bincount(minlength=35).numpy()
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("side", [1, 2, 7, 16, 100])
def test_squares_of_cutout_are_clipped_at_the_border(side):
    """Pixel by pixel: it is erased if it is at most half the side away from the middle."""
    middles = draw_middles(40, size=SIZE, generator=generator(side))
    mask = mask_of(draw_squares(40, side, size=SIZE, generator=generator(side)), *SIZE)
    for (row, column), erased in zip(middles.tolist(), mask.squeeze(1).numpy(), strict=True):
        y, x = np.ogrid[: SIZE[0], : SIZE[1]]
        before, after = side // 2, (side - 1) // 2
        near = (y >= row - before) & (y <= row + after) & (x >= column - before) & (x <= column + after)
        assert np.array_equal(erased, near)


def test_rectangles_of_sides_0_are_empty():
    middles = torch.tensor([[0, 0], [5, 6], [31, 23]])
    assert not mask_of(around(middles, torch.zeros(3, 2).long(), size=SIZE), *SIZE).any()


def test_erased_pixels_are_0_and_others_stay_as_torchvision_has_it():
    images = torch.randn(30, 3, *SIZE, generator=generator()) + 5
    rectangles = draw_erasing(30, 0.7, size=SIZE, generator=generator(2))
    expected = [
        transform.erase(image, top, left, bottom - top, right - left, v=torch.zeros(3, 1, 1))
        for image, (top, bottom, left, right) in zip(images, rectangles.tolist(), strict=True)
    ]
    assert torch.equal(erase(images, rectangles), torch.stack(expected))
    assert erase(images[:0], rectangles[:0]).shape == (0, 3, *SIZE)
