import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms
from torchvision.transforms import functional as transform
from torchvision.transforms.functional import to_pil_image

from data.augment import crop_and_flip, normalise

MEAN, STD = (0.4914, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)

generated = settings(deadline=None, derandomize=True, max_examples=60)


def column(values):
    return torch.tensor(values).view(-1, 1, 1)


def random_pixels(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@st.composite
def batches(draw):
    """Draw images, a padding, and a crop and a flip for each image."""
    n, channels, height, width = (draw(st.integers(1, high)) for high in (6, 4, 9, 9))
    padding = draw(st.integers(0, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randn(n, channels, height, width, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator)
    return images, top, left, torch.randint(2, (n,), generator=generator).bool(), padding


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.0,) * 3, (1.0,) * 3)])
def test_normalise_agrees_with_torchvision_image_by_image(mean, std):
    images = random_pixels(20, 3, 32, 32)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([reference(to_pil_image(image)) for image in images])
    ours = normalise(images, column(mean), column(std))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_normalise_with_its_own_statistics_gives_mean_0_and_standard_deviation_1():
    images = random_pixels(40, 3, 16, 16)
    scaled = images.double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3), correction=0)
    ours = normalise(images, mean.float().view(3, 1, 1), std.float().view(3, 1, 1)).double()
    torch.testing.assert_close(ours.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_an_empty_batch_stays_empty():
    none = torch.zeros(0, dtype=torch.long)
    cropped = crop_and_flip(torch.zeros(0, 3, 8, 8), none, none, none.bool(), padding=4)
    assert cropped.shape == normalise(random_pixels(0, 3, 8, 8), column(MEAN), column(STD)).shape == (0, 3, 8, 8)


@generated
@given(batches())
def test_crop_and_flip_agrees_with_slicing_image_by_image(batch):
    images, top, left, flip, padding = batch
    height, width = images.shape[2:]
    expected = []
    for image, y, x, mirrored in zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True):
        window = F.pad(image, (padding,) * 4)[:, y : y + height, x : x + width]
        expected.append(window.flip(-1) if mirrored else window)
    ours = crop_and_flip(images, top, left, flip, padding=padding)
    assert torch.equal(ours, torch.stack(expected))
    assert ours.is_contiguous()


@generated
@given(batches())
def test_crop_and_flip_agrees_with_torchvision_image_by_image(batch):
    images, top, left, flip, padding = batch
    height, width = images.shape[2:]
    expected = []
    for image, y, x, mirrored in zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True):
        window = transform.crop(transform.pad(image, [padding]), y, x, height, width)
        expected.append(transform.hflip(window) if mirrored else window)
    assert torch.equal(crop_and_flip(images, top, left, flip, padding=padding), torch.stack(expected))


def test_each_image_of_a_batch_gets_its_own_crop_and_flip():
    images = torch.arange(1.0, 10).view(1, 1, 3, 3).expand(4, -1, -1, -1)
    top, left = torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 1])
    flip = torch.tensor([False, False, True, False])
    assert crop_and_flip(images, top, left, flip, padding=1).squeeze(1).tolist() == [
        [[0, 0, 0], [1, 2, 3], [4, 5, 6]],  # window one row above the image
        [[4, 5, 6], [7, 8, 9], [0, 0, 0]],  # one row below
        [[2, 1, 0], [5, 4, 0], [8, 7, 0]],  # one column to the left, then mirrored
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],  # in its place
    ]


def test_border_has_the_mean_colour():
    pixels = random_pixels(1, 3, 8, 8)
    corner = torch.tensor([0])
    ours = crop_and_flip(normalise(pixels, column(MEAN), column(STD)), corner, corner, torch.tensor([False]), padding=4)
    canvas = (column(MEAN) * 255).expand(1, 3, 8, 8).clone()
    canvas[:, :, 4:, 4:] = pixels[:, :, :4, :4]
    torch.testing.assert_close(ours, (canvas / 255 - column(MEAN)) / column(STD), rtol=0, atol=2e-6)
    ours[:, :, 4:, 4:] = 0
    assert torch.count_nonzero(ours) == 0  # exactly


@generated
@given(batches())
def test_borders_of_raw_pixels_are_those_of_torchvision(batch):
    images, top, left, flip, padding = batch
    pixels = (images * 60 + 128).clamp(0, 255).byte()
    channels, height, width = pixels.shape[1:]
    colour = [9, 250, 31, 77][:channels]
    expected = []
    for image, y, x, mirrored in zip(pixels, top.tolist(), left.tolist(), flip.tolist(), strict=True):
        padded = torch.cat(
            [transform.pad(one[None], [padding], fill=fill) for one, fill in zip(image, colour, strict=True)]
        )
        window = transform.crop(padded, y, x, height, width)
        expected.append(transform.hflip(window) if mirrored else window)
    border = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1)
    assert torch.equal(crop_and_flip(pixels, top, left, flip, padding=padding, border=border), torch.stack(expected))


def test_the_window_in_the_middle_without_a_flip_is_the_image():
    images = torch.randn(5, 3, 32, 32)
    middle = torch.full((5,), 4)
    assert torch.equal(crop_and_flip(images, middle, middle, torch.zeros(5).bool(), padding=4), images)


def test_inputs_are_not_modified():
    pixels = random_pixels(6, 3, 8, 8)
    mean, std = column(MEAN), column(STD)
    images = normalise(pixels, mean, std)
    inputs = [pixels, mean, std, images, torch.arange(6), torch.arange(6).flip(0), torch.arange(6) % 2 == 0]
    copies = [tensor.clone() for tensor in inputs]
    normalise(*inputs[:3])
    crop_and_flip(*inputs[3:], padding=4)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)
