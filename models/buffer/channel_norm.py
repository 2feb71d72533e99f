"""A batch norm as a function of each channel of raw feature maps."""

from typing import NamedTuple

from torch import Tensor


class ChannelNorm(NamedTuple):
    """A norm layer applied to feature maps x: gamma * (x - mean) * invstd + beta.

    Attributes:
        mean: Mean of each channel (c,), of the batch or a running one.
        invstd: 1 / sqrt(variance + eps), (c,).
        weight: gamma (c,).
        bias: beta (c,).
    """

    mean: Tensor
    invstd: Tensor
    weight: Tensor
    bias: Tensor
