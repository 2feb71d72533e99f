"""Normalisation, crops and flips of a whole batch at once, as pure functions of tensors on any device.

N images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels from 0..255 so that each channel has mean 0 and standard deviation 1 over the data set.

    Args:
        images: uint8 (N, C, H, W).
        mean: (C, 1, 1), mean of each channel, of pixels divided by 255.
        std: (C, 1, 1), standard deviation of each channel, of pixels divided by 255.

    Returns:
        float32 (N, C, H, W).
    """
    return images.float().sub_(mean * 255).div_(std * 255)


def crop_and_flip(
    images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, padding: int, border: Tensor | None = None
) -> Tensor:
    """Pad each image, crop it to its old size, and mirror some images from left to right.

    After `normalise` a border of zeros has the mean colour, as in the authors' code. Around raw pixels it is black.

    Args:
        images: (N, C, H, W).
        top: int64 (N,), first row of each crop in the padded image, from 0 to 2 * padding.
        left: int64 (N,), first column of each crop in the padded image, from 0 to 2 * padding.
        flip: bool (N,), which images to mirror.
        padding: Pixels to add on each side.
        border: (C, 1, 1), their colour, of the type of the images. None: zeros.

    Returns:
        (N, C, H, W), contiguous.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    if border is not None:
        padded = border.repeat(n, 1, *padded.shape[2:])
        padded[:, :, padding : padding + height, padding : padding + width] = images
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows = top[:, None] + y  # (N, H)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - x, x)  # (N, W)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (N, H, W), positions in a padded channel
    pixels = pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(n, channels, height, width)
