"""Crops of an image: in the middle for evaluation, and for training a function of a seed.

S is the height and width of the images that a network takes.
"""

import math
import random
from dataclasses import dataclass

SMALL = 64  # largest S whose training images are augmented as in CIFAR: padded, cropped and flipped
AREAS = (0.08, 1.0)  # range of the area of a random crop, as a fraction of the image
RATIOS = (3 / 4, 4 / 3)  # range of width to height of a random crop
TRIES = 10  # attempts to place a random crop inside the image
RESIZE_RATIO = 256 / 224  # shorter side for evaluation as a multiple of S, above SMALL; usual for ImageNet


@dataclass(frozen=True)
class Crop:
    """A part of an image that is resized to S x S.

    Attributes:
        box: Left, top, right and bottom edge in pixels of the image; fractions are allowed.
        crop_first: Whether the image is cropped before it is resized. If not, it is resized as a whole and then
            cropped, so that pixels outside the box blend into those at its border.
        flip: Whether the result is mirrored from left to right.
    """

    box: tuple[float, float, float, float]
    crop_first: bool = False
    flip: bool = False


def shorter_side(size: int) -> int:
    """Return the length to which the shorter side is resized for evaluation: S up to 64, and 256/224 of S above."""
    return size if size <= SMALL else round(size * RESIZE_RATIO)


def middle_crop(width: int, height: int, *, size: int) -> Crop:
    """Return the crop for evaluation: S x S in the middle, after the shorter side is resized to `shorter_side(S)`.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: S.
    """
    shorter = shorter_side(size)
    longer = int(shorter * max(width, height) / min(width, height))
    new_width, new_height = (shorter, longer) if width <= height else (longer, shorter)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height  # pixels of the image in one pixel of the resized image
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)  # rounding must not exceed the image
    return Crop((left * x, top * y, right, bottom))


def random_crop(width: int, height: int, *, seed: int) -> Crop:
    """Return a crop for training: of random area, aspect ratio and position, and mirrored with probability 1/2.

    If no crop with the drawn areas and ratios fits into the image, the crop is the largest one in its middle that has
    an allowed ratio.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        seed: The crop is a function of this and the size of the image.

    References:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6 (arXiv:1409.4842).
    """
    draw = random.Random(seed)
    flip = draw.random() < 0.5
    for _ in range(TRIES):
        area = width * height * draw.uniform(*AREAS)
        ratio = math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = draw.randint(0, width - crop_width), draw.randint(0, height - crop_height)
            return Crop((left, top, left + crop_width, top + crop_height), crop_first=True, flip=flip)
    crop_width = min(width, round(height * RATIOS[1]))
    crop_height = min(height, round(width / RATIOS[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return Crop((left, top, left + crop_width, top + crop_height), crop_first=True, flip=flip)
