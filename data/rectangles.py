"""Random rectangles of images, and erasing what is in them: random erasing and cutout.

A rectangle is four whole numbers: its first row, the row after its last one, and the same for columns. It is empty if
both rows are equal.

References:
    Zhong et al., Random Erasing Data Augmentation, 2017 (arXiv:1708.04896).
    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017 (arXiv:1708.04552).
"""

import math

import torch
from torch import Tensor

ERASED_AREAS = (0.02, 0.33)  # range of the area of a rectangle for random erasing, as a fraction of the image
ERASED_RATIOS = (0.3, 3.3)  # range of its height to width
TRIES = 10  # attempts to draw one that is smaller than the image; then nothing is erased


def draw_erasing(num_images: int, probability: float, *, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw what random erasing takes from each image: int64 (N, 4), an empty rectangle where it takes nothing.

    Args:
        num_images: N.
        probability: That an image loses something.
        size: Height and width of the images.
        generator: A generator on the CPU.
    """
    draws = torch.rand(num_images, 2, TRIES, dtype=torch.float64, generator=generator)
    places = torch.rand(num_images, 2, dtype=torch.float64, generator=generator)
    is_chosen = torch.rand(num_images, dtype=torch.float64, generator=generator) < probability
    height, width = size
    areas = (ERASED_AREAS[0] + draws[:, 0] * (ERASED_AREAS[1] - ERASED_AREAS[0])) * (height * width)
    low, high = map(math.log, ERASED_RATIOS)
    ratios = (low + draws[:, 1] * (high - low)).exp()
    sides = torch.stack([(areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()], 2)  # (N, TRIES, 2)
    limits = torch.tensor(size, dtype=torch.float64)
    fits = (sides < limits).all(2)
    first = fits.int().argmax(1)  # 0 if none fits
    sides = sides[torch.arange(num_images), first] * (is_chosen & fits.any(1))[:, None]
    starts = (places * (limits - sides + 1)).floor()
    return torch.stack([starts, starts + sides], 2).flatten(1).long()


def draw_squares(num_images: int, side: int, *, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a square for each image whose middle is any pixel, and of which the part inside the image counts.

    Args:
        num_images: N.
        side: Side of the squares in pixels.
        size: Height and width of the images.
        generator: A generator on the CPU.

    Returns:
        int64 (N, 4).
    """
    return around(draw_middles(num_images, size=size, generator=generator), torch.tensor(side), size=size)


def draw_middles(num_images: int, *, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a pixel of each image uniformly: its row and column, int64 (N, 2)."""
    return torch.stack([torch.randint(limit, (num_images,), generator=generator) for limit in size], 1)


def around(middles: Tensor, sides: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Return the rectangles around some pixels, clipped at the borders of the image.

    Args:
        middles: int64 (N, 2), row and column.
        sides: int64 (N, 2), (2,) or (), height and width before clipping.
        size: Height and width of the image.

    Returns:
        int64 (N, 4).
    """
    starts = middles - sides // 2
    limits = torch.tensor(size)
    return torch.stack([starts.clamp(min=0), (starts + sides).minimum(limits)], 2).flatten(1)


def mask_of(rectangles: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are in the rectangle of each image.

    Args:
        rectangles: int64 (n, 4).
        height: Height of the images.
        width: Width of the images.

    Returns:
        bool (n, 1, H, W).
    """
    top, bottom, left, right = rectangles[:, :, None].unbind(1)  # (n, 1) each
    y, x = (torch.arange(length, device=rectangles.device) for length in (height, width))
    is_row, is_column = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (is_row[:, :, None] & is_column[:, None, :]).unsqueeze(1)


def erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Set pixels to 0, which is the mean colour of normalised images.

    Args:
        images: (n, C, H, W).
        rectangles: int64 (n, 4).

    Returns:
        (n, C, H, W).
    """
    return images.masked_fill(mask_of(rectangles, *images.shape[2:]), 0)
