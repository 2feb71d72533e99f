"""Mean and standard deviation of each channel, for images that are not RGB too."""

from contextlib import closing
from dataclasses import replace
from math import sqrt

import torch

from data.datasets import DatasetSpec
from data.images import ImageFiles
from data.splits import Images

MOST_MEASURED = 1000  # images; the error of a mean is then about 1/32 of the standard deviation, or less
PART = 16  # images that are summed at a time
SMALLEST_STD = 1 / 255  # of a channel that has one value everywhere


def with_normalisation(spec: DatasetSpec, train: Images, *, channels: int) -> DatasetSpec:
    """Return how a data set is prepared, with means and standard deviations for its channels.

    Those of RGB are fixed. A single grey channel has their averages. Those of arrays are measured on the training
    images as they are for evaluation, or on 1,000 evenly spaced ones.

    Args:
        spec: How the data set is prepared in RGB.
        train: All training images.
        channels: Their channels.

    Raises:
        DataError: If files cannot be read as images.
    """
    if isinstance(train, ImageFiles) and train.are_arrays:
        mean, std = _measure(train)
        return replace(spec, mean=mean, std=std)
    fixed = fixed_normalisation(spec, channels=channels)
    assert fixed is not None, "only arrays have other channels"
    return fixed


def fixed_normalisation(spec: DatasetSpec, *, channels: int) -> DatasetSpec | None:
    """Return how images are prepared that are no arrays: RGB, or grey; None for any other number of channels."""
    if channels == 1:
        mean, std = ((round(sum(values) / len(values), 5),) for values in (spec.mean, spec.std))
        return replace(spec, mean=mean, std=std)
    return spec if channels == len(spec.mean) else None


def _measure(images: ImageFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel, of pixels divided by 255, to five decimals."""
    number = min(len(images), MOST_MEASURED)
    order = torch.arange(number) * len(images) // number
    parts = [slice(start, start + PART) for start in range(0, number, PART)]
    sums = squares = torch.zeros(images.channels, dtype=torch.int64)
    with closing(images.read(order, parts)) as batches:
        for batch in batches:
            sums = sums + batch.sum((0, 2, 3), dtype=torch.int64)
            squares = squares + batch.int().square_().sum((0, 2, 3), dtype=torch.int64)
    pixels = number * images.image_size**2
    means = [total / pixels for total in sums.tolist()]
    variances = [total / pixels - mean**2 for total, mean in zip(squares.tolist(), means, strict=True)]
    stds = [max(sqrt(max(variance, 0)) / 255, SMALLEST_STD) for variance in variances]
    return tuple(round(mean / 255, 5) for mean in means), tuple(round(std, 5) for std in stds)
