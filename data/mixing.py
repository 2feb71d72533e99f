"""Mixup and cutmix: each image is mixed with another one of its batch, and so are their labels.

Each pixel of a mixture is a weighted mean of both images. In mixup all pixels have the same weights; in cutmix a
rectangle is taken from the other image. Labels have the mean weights over all pixels.

References:
    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017 (arXiv:1710.09412).
    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019
    (arXiv:1905.04899).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.rectangles import around, draw_middles, mask_of


class Mixing(NamedTuple):
    """How N images are mixed with others.

    Attributes:
        weight: float32 (N,), the weight of the image itself outside its rectangle; 1 in cutmix.
        rectangle: int64 (N, 4), the pixels that come from the other image alone; empty in mixup.
        label_weight: float32 (N,), the weight of the image's own label.
    """

    weight: Tensor
    rectangle: Tensor
    label_weight: Tensor

    def at(self, index: Tensor | slice) -> "Mixing":
        """Return how some of the images are mixed."""
        return Mixing(*(values[index] for values in self))

    def to(self, device: torch.device) -> "Mixing":
        """Return the same on a device."""
        return Mixing(*(values.to(device) for values in self))


def draw_mixing(
    num_images: int, *, mixup: float, cutmix: float, size: tuple[int, int], generator: torch.Generator
) -> Mixing:
    """Draw how each image is mixed. If both are on, half of the images get mixup and the others cutmix.

    Args:
        num_images: N.
        mixup: A, where the weight of an image is drawn from Beta(A, A). 0: no mixup.
        cutmix: A, where the area that an image keeps is drawn from Beta(A, A). 0: no cutmix.
        size: Height and width of the images.
        generator: A generator on the CPU.
    """
    is_cutmix = torch.rand(num_images, generator=generator) < (0.5 if mixup and cutmix else float(cutmix > 0))
    middles = draw_middles(num_images, size=size, generator=generator)
    shares = _draw_beta(torch.where(is_cutmix, cutmix, mixup), generator)  # float64
    half_sides = (0.5 * (1 - shares).sqrt()[:, None] * torch.tensor(size)).long() * is_cutmix[:, None]
    rectangles = around(middles, 2 * half_sides, size=size)
    top, bottom, left, right = rectangles.unbind(1)
    kept = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    weights = torch.where(is_cutmix, 1.0, shares)
    return Mixing(weights.float(), rectangles, torch.where(is_cutmix, kept, shares).float())


def _draw_beta(parameters: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from Beta(A, A) for each A: float64 (N,). PyTorch's own function takes no generator."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    values = parameters.double().numpy()
    return torch.from_numpy(np.random.default_rng(seed).beta(values, values))


def mix(images: Tensor, labels: Tensor, mixing: Mixing, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix each image but the first with the one before it.

    Args:
        images: float32 (n + 1, C, H, W), or (0, C, H, W) where there is nothing to mix.
        labels: int64 (n + 1,) or (0,).
        mixing: How the images are mixed; that of the first one is not used.
        num_classes: Number of classes.

    Returns:
        The mixtures, float32 (n, C, H, W), and the probability of each class, float32 (n, classes).
    """
    own, other = images[1:], images[:-1]
    weight, rectangle, label_weight = mixing.at(slice(1, None))
    weights = weight[:, None, None, None].where(~mask_of(rectangle, *images.shape[2:]), 0)  # (n, 1, H, W)
    classes = torch.arange(num_classes, device=labels.device)
    own_label, other_label = ((some[:, None] == classes).float() for some in (labels[1:], labels[:-1]))
    share = label_weight[:, None]
    return other.lerp(own, weights), own_label * share + other_label * (1 - share)
