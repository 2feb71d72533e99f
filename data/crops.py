"""Which part of a picture a network sees: functions of its size, and for training of a seed.

S is the height and width of the images that a network takes.
"""

import math
import random
from dataclasses import dataclass

SMALL = 64  # largest S whose training images are cropped and flipped as those of CIFAR
AREAS = (0.08, 1.0)  # of a random crop, as a fraction of the picture
RATIOS = (3 / 4, 4 / 3)  # of width to height of a random crop
TRIES = 10  # to find a random crop that lies within the picture
WIDER = 256 / 224  # the shorter side for evaluation as a multiple of S, above SMALL; as is usual for ImageNet


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in its pixels, that is resized to S x S.

    Attributes:
        box: Left, top, right and bottom edge, possibly between two pixels.
        alone: Whether the pixels around it stay out of it. If not, it is a part of the resized picture, and pixels
            beyond its border blend into those at its border.
        flip: Whether it is mirrored from left to right.
    """

    box: tuple[float, float, float, float]
    alone: bool = False
    flip: bool = False


def shorter_side(size: int) -> int:
    """What the shorter side of a picture becomes for evaluation: S up to 64, and 256/224 of S above."""
    return size if size <= SMALL else round(size * WIDER)


def middle_crop(width: int, height: int, *, size: int) -> Crop:
    """The part for evaluation: the middle of the picture, once its shorter side is resized; see `shorter_side`."""
    shorter = shorter_side(size)
    longer = int(shorter * max(width, height) / min(width, height))
    new_width, new_height = (shorter, longer) if width <= height else (longer, shorter)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height  # pixels of the picture in a resized one
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)  # not above them by rounding
    return Crop((left * x, top * y, right, bottom))


def random_crop(width: int, height: int, *, seed: int) -> Crop:
    """A part for training: of random area, ratio and place, mirrored or not.

    Where no part of the drawn area and ratio fits into the picture, it is the largest one in its middle whose ratio is
    allowed.

    References:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6 (arXiv:1409.4842).
    """
    draw = random.Random(seed)
    flip = draw.random() < 0.5
    for _ in range(TRIES):
        area = width * height * draw.uniform(*AREAS)
        ratio = math.exp(draw.uniform(*map(math.log, RATIOS)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = draw.randint(0, width - crop_width), draw.randint(0, height - crop_height)
            return Crop((left, top, left + crop_width, top + crop_height), alone=True, flip=flip)
    crop_width = min(width, round(height * RATIOS[1]))
    crop_height = min(height, round(width / RATIOS[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return Crop((left, top, left + crop_width, top + crop_height), alone=True, flip=flip)
