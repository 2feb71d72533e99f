"""From the pixels of a batch to what a network is trained on, by the plan of an epoch.

The steps in their order: crop and flip, TrivialAugment, normalisation, random erasing and cutout, mixup or cutmix. With
a border of the mean colour and without TrivialAugment the crop comes after normalisation, where that colour is exactly
0; in pixels it is rounded to whole numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.augment import crop_and_flip, normalise
from data.epoch_plan import PADDING, EpochPlan
from data.mixing import mix
from data.rectangles import erase
from data.trivial_augment import sort_by_operation, trivial_augment


class Transform:
    """Prepares the batches of an epoch on their device.

    Args:
        plan: The random choices for the images of all batches, one batch after the other, on the CPU.
        batches: The images of each batch, as slices of the plan.
        mean: (C, 1, 1) on the device, mean of each channel, of pixels divided by 255.
        std: (C, 1, 1) on the device, standard deviation of each channel, of pixels divided by 255.
        crops: Whether images are cropped and flipped.
        has_black_border: Whether they are black around their border. If not, they have the mean colour there.
        num_classes: Number of classes, for mixtures.
    """

    def __init__(
        self,
        plan: EpochPlan,
        batches: Sequence[slice],
        *,
        mean: Tensor,
        std: Tensor,
        crops: bool,
        has_black_border: bool,
        num_classes: int,
    ):
        self.plan = plan.to(mean.device)
        self.mean = mean
        self.std = std
        self.crops = crops
        self.crops_pixels = crops and (has_black_border or plan.operation is not None)
        self.border = torch.zeros_like(mean).byte() if has_black_border else (mean * 255).round().byte()
        self.num_classes = num_classes
        if plan.operation is not None:
            members, self.counts = sort_by_operation(plan.operation, batches)
            self.members = members.to(mean.device)

    def __call__(self, pixels: Tensor, labels: Tensor, number: int, batch: slice) -> tuple[Tensor, Tensor]:
        """Prepare a batch.

        Args:
            pixels: uint8 (n, C, H, W).
            labels: int64 (n,).
            number: Index of the batch.
            batch: Its images, as a slice of the plan.

        Returns:
            Images, float32 (n, C, H, W), and their labels. If images are mixed, the first one is left out, and labels
            are float32 (n - 1, classes).
        """
        plan, images = self.plan, pixels
        if self.crops_pixels:
            images = self._crop(images, batch, border=self.border)
        if plan.operation is not None and plan.strength is not None:
            images = trivial_augment(images, self.members[batch], self.counts[number], plan.strength[batch])
        images = normalise(images, self.mean, self.std)
        if self.crops and not self.crops_pixels:
            images = self._crop(images, batch, border=None)
        for rectangles in (plan.erased, plan.cutout):
            if rectangles is not None:
                images = erase(images, rectangles[batch])
        if plan.mixing is not None:
            return mix(images, labels, plan.mixing.at(batch), num_classes=self.num_classes)
        return images, labels

    def _crop(self, images: Tensor, batch: slice, *, border: Tensor | None) -> Tensor:
        top, left, flip = (choices[batch] for choices in (self.plan.top, self.plan.left, self.plan.flip))
        return crop_and_flip(images, top, left, flip, padding=PADDING, border=border)
