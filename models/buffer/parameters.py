"""The parameters of dense layers, in the order in which all parts of a block pass them and their gradients on.

c channels that a layer reads, b of its bottleneck, k that it makes.
"""

from typing import NamedTuple

from torch import Tensor

from ..layers import DenseLayer, PlainLayer


class PlainLayerParameters(NamedTuple):
    """The parameters of a plain layer, or their gradients: (c,), (c,) and (k, c, 3, 3)."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    conv1_weight: Tensor


class DenseLayerParameters(NamedTuple):
    """The parameters of a dense layer, or their gradients: (c,), (c,), (b, c, 1, 1), (b,), (b,) and (k, b, 3, 3)."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    conv1_weight: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    conv2_weight: Tensor


def parameters_of_layer(layer: DenseLayer | PlainLayer) -> DenseLayerParameters | PlainLayerParameters:
    """Return the parameters of a layer."""
    norm1, conv1 = layer.norm1, layer.conv1
    if isinstance(layer, PlainLayer):
        return PlainLayerParameters(norm1.weight, norm1.bias, conv1.weight)
    norm2, conv2 = layer.norm2, layer.conv2
    return DenseLayerParameters(norm1.weight, norm1.bias, conv1.weight, norm2.weight, norm2.bias, conv2.weight)
