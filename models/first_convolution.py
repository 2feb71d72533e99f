"""The first convolution's weights for images with another number of channels.

    1 channel:       the sum over all N input channels
    M channels > 1:  the N input channels again and again, times N / M

For one channel, and for multiples of N, an image whose channels are all equal then has the feature maps that it had
before. For other numbers only their size stays about the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIRST_CONVOLUTION = "features.conv0.weight"


def adapt_input_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the weight of a convolution to another number of input channels.

    Args:
        weight: (C, N, h, w), of any floating-point type.
        in_channels: The new number M, 1 or more.

    Returns:
        float64 (C, M, h, w), so that nothing is rounded before the network's own type.

    References:
        timm adapts pretrained weights by the same rule where N is 3.
    """
    weight = weight.double()
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    num_channels = weight.shape[1]
    order = torch.arange(in_channels, device=weight.device) % num_channels
    return weight[:, order] * (num_channels / in_channels)


def with_adapted_input(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Adapt the first convolution among some weights if it differs from the network's in its input channels alone.

    Args:
        given: Weights by the network's names.
        own: The network's state_dict; may be on `meta`.
    """
    weight, expected = given.get(FIRST_CONVOLUTION), own[FIRST_CONVOLUTION]
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return dict(given)
    if weight.is_nested or weight.layout != torch.strided:
        return dict(given)
    old, new = tuple(weight.shape), tuple(expected.shape)
    if old == new or len(old) != 4 or 0 in old or (old[0], *old[2:]) != (new[0], *new[2:]):
        return dict(given)
    return {**given, FIRST_CONVOLUTION: adapt_input_channels(weight, new[1])}
