"""TrivialAugment: each image of a batch is changed by one operation of random strength, chosen from fourteen.

Which operation an image gets is known on the CPU before the epoch begins, so that a batch is sorted by operation
without waiting for its device. Each operation maps uint8 images (n, C, H, W) and their strengths, int64 (n,), to images
of the same shape. Sums are of whole numbers, and each product is rounded by itself, so that pixels do not depend on the
device or on the other images of the batch.

References:
    Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, 2021 (arXiv:2103.10158): its
    wide augmentation space.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

LEVELS = 31  # from no change to the strongest one
STRENGTHS = 2 * LEVELS  # a strength s is the level s // 2, in its opposite direction if s is odd
STEEPEST_SHEAR = 0.99
LONGEST_TRANSLATION = 32.0  # pixels, whatever the size of the image
LARGEST_ANGLE = 135.0  # degrees
LARGEST_CHANGE = 0.99  # of brightness, colour, contrast and sharpness, from 1
MOST_BITS_LOST = 6  # of the 8 of a pixel

Operation = Callable[[Tensor, Tensor], Tensor]


def draw_operations(num_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw an operation and its strength for each image, uniformly.

    Returns:
        The index of the operation, int64 (N,), and the strength, int64 (N,), from 0 to STRENGTHS - 1.
    """
    operations = torch.randint(len(OPERATIONS), (num_images,), generator=generator)
    return operations, torch.randint(STRENGTHS, (num_images,), generator=generator)


def sort_by_operation(operations: Tensor, parts: Sequence[slice]) -> tuple[Tensor, list[list[int]]]:
    """Sort the images of each batch by their operation.

    Args:
        operations: int64 (N,), on the CPU.
        parts: Each batch, as a slice of the N images; together they are all of these, in order.

    Returns:
        For each image, int64 (N,): where it was in its batch. And for each batch the number of images that have each
        operation.
    """
    sizes = torch.tensor([part.stop - part.start for part in parts], dtype=torch.long)
    batch = torch.arange(len(parts)).repeat_interleave(sizes)
    keys = batch * len(OPERATIONS) + operations
    starts = torch.tensor([part.start for part in parts], dtype=torch.long)
    counts = keys.bincount(minlength=len(parts) * len(OPERATIONS)).view(-1, len(OPERATIONS))
    return keys.argsort(stable=True) - starts[batch], counts.tolist()


def trivial_augment(images: Tensor, members: Tensor, counts: Sequence[int], strengths: Tensor) -> Tensor:
    """Change each image by its operation.

    Args:
        images: uint8 (n, C, H, W).
        members: int64 (n,), positions of the images, sorted by operation.
        counts: The number of images that have each operation.
        strengths: int64 (n,), the strength for each image, from 0 to STRENGTHS - 1.

    Returns:
        uint8 (n, C, H, W).
    """
    result = images.clone()
    for operation, group in zip(OPERATIONS.values(), members.split(list(counts)), strict=True):
        if len(group) and operation is not _identity:
            result.index_copy_(0, group, operation(images[group], strengths[group]))
    return result


def _changes(strongest: float) -> Tensor:
    """The change for each strength: float64 (STRENGTHS,), of both signs."""
    sizes = torch.linspace(0, strongest, LEVELS)  # rounded to 32 bits, as in torchvision
    return torch.stack([sizes, -sizes], 1).flatten().double()


def _column(table: Tensor, strengths: Tensor) -> Tensor:
    """Look up the value of each strength: (n, 1, 1, 1)."""
    return table.to(strengths.device, non_blocking=True)[strengths].view(-1, 1, 1, 1)


def _identity(images: Tensor, strengths: Tensor) -> Tensor:
    return images


# Geometry. Points are in pixels from the upper left corner of the image, so that the middle of its first pixel is
# (1/2, 1/2).


def _sample(images: Tensor, strengths: Tensor, *, matrices: Tensor, pivot: float = 0.0) -> Tensor:
    """Fetch each pixel from the point that an affine map sends it to. Points outside the image are black.

    Args:
        images: uint8 (n, C, H, W).
        strengths: int64 (n,).
        matrices: float64 (STRENGTHS, 2, 3), the map of each strength.
        pivot: The origin of the maps, as a fraction of width and height.
    """
    _, channels, height, width = images.shape
    # Each coefficient is (n, 1, 1).
    (a, b, c), (d, e, f) = matrices.to(images.device, non_blocking=True)[strengths].permute(1, 2, 0)[..., None, None]
    x, y = (
        torch.arange(size, dtype=torch.float64, device=images.device) + (0.5 - pivot * size) for size in (width, height)
    )
    columns = (a * x + b * y[:, None] + (c + pivot * width)).floor().long()  # (n, H, W)
    rows = (d * x + e * y[:, None] + (f + pivot * height)).floor().long()
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = (rows * width + columns).where(is_inside, 0).flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).view(images.shape) * is_inside.unsqueeze(1)


def _matrices(rows: Callable[[float], tuple[tuple[float, ...], tuple[float, ...]]], strongest: float) -> Tensor:
    """The affine map of each strength: float64 (STRENGTHS, 2, 3)."""
    return torch.tensor([rows(value) for value in _changes(strongest).tolist()], dtype=torch.float64)


def _rotation(degrees: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cos, -sin, 0), (sin, cos, 0)


SHEAR_X = _matrices(lambda slope: ((1, slope, 0), (0, 1, 0)), STEEPEST_SHEAR)
SHEAR_Y = _matrices(lambda slope: ((1, 0, 0), (slope, 1, 0)), STEEPEST_SHEAR)
TRANSLATE_X = _matrices(lambda shift: ((1, 0, -int(shift)), (0, 1, 0)), LONGEST_TRANSLATION)
TRANSLATE_Y = _matrices(lambda shift: ((1, 0, 0), (0, 1, -int(shift))), LONGEST_TRANSLATION)
ROTATE = _matrices(_rotation, LARGEST_ANGLE)


# Colours and sharpness: a blend of the image with another one, beyond the image where its share is above 1.

SHARES = -_changes(LARGEST_CHANGE).float()  # of the other image


def _blend(images: Tensor, others: Tensor | float, strengths: Tensor) -> Tensor:
    share = _column(SHARES, strengths)
    return (images + (others - images.float()) * share).clamp_(0, 255).byte()


def _grey(images: Tensor) -> Tensor:
    """The brightness of each pixel in whole numbers, int32 (n, 1, H, W); a plain mean unless there are 3 channels."""
    if images.shape[1] != 3:
        return images.sum(1, keepdim=True, dtype=torch.int32) // images.shape[1]
    red, green, blue = images.int().split(1, 1)
    return (red * 2989 + green * 5870 + blue * 1140) // 10_000


def _brightness(images: Tensor, strengths: Tensor) -> Tensor:
    return _blend(images, 0.0, strengths)


def _color(images: Tensor, strengths: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images  # it has no colours
    return _blend(images, _grey(images), strengths)


def _contrast(images: Tensor, strengths: Tensor) -> Tensor:
    total = _grey(images).sum((1, 2, 3), keepdim=True)  # int64
    return _blend(images, total.float() / (images.shape[2] * images.shape[3]), strengths)


def _sharpness(images: Tensor, strengths: Tensor) -> Tensor:
    """Blend with an image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, whose outermost pixels are as they were."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    wide = images.int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).byte()  # rounded
    return _blend(images, smooth, strengths)


# Maps of single values.


def _keep_masks() -> Tensor:
    bits = [round(MOST_BITS_LOST * level / (LEVELS - 1)) for level in range(LEVELS) for _ in range(2)]
    return torch.tensor([256 - (1 << lost) for lost in bits]).byte()


KEPT_BITS = _keep_masks()
THRESHOLDS = (255 * torch.linspace(1, 0, LEVELS).double()).float().repeat_interleave(2)


def _posterize(images: Tensor, strengths: Tensor) -> Tensor:
    return images & _column(KEPT_BITS, strengths)


def _solarize(images: Tensor, strengths: Tensor) -> Tensor:
    return torch.where(images >= _column(THRESHOLDS, strengths), 255 - images, images)


def _autocontrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Stretch the values of each channel to 0..255; a channel of one value stays as it is."""
    lowest, highest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    is_flat = lowest == highest
    scale = ((highest - lowest).float() * (1 / 255)).where(~is_flat, 1.0)
    return ((images - lowest.where(~is_flat, 0)) / scale).clamp_(0, 255).byte()


def _equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """Spread the values of each channel so that about as many pixels have each; the last value is not counted."""
    flat = images.flatten(2).long()  # (n, C, H W)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.int32))
    num_lower = counts.cumsum(2, dtype=torch.int32) - counts  # pixels below each value
    step = num_lower.gather(2, flat.amax(2, keepdim=True)) // 255
    table = ((num_lower + step // 2) // step.clamp(min=1)).clamp_(max=255).byte()
    return table.gather(2, flat).view(images.shape).where(step.unsqueeze(3) > 0, images)


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "shear_x": partial(_sample, matrices=SHEAR_X),
    "shear_y": partial(_sample, matrices=SHEAR_Y),
    "translate_x": partial(_sample, matrices=TRANSLATE_X),
    "translate_y": partial(_sample, matrices=TRANSLATE_Y),
    "rotate": partial(_sample, matrices=ROTATE, pivot=0.5),
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
