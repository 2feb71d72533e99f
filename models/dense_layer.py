"""A dense layer that reads a feature buffer: norm, ReLU, 1x1, norm, ReLU, 3x3, forward and backward.

Its bottleneck z, which the 1x1 convolution makes, has one reader, and is not stored normalised as the block's maps are.
The norm behind it needs mean and variance of the whole batch; around it everything goes in chunks.

R rows, N images, H x W pixels; c channels that the layer reads, b of its bottleneck, k that it makes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import Affine, NormGradient, activate
from .feature_buffer import FeatureBuffer, GradientBuffer, Statistics
from .norms import Norm, Normalisation, RunningStatistics
from .reductions import totals
from .rows import (
    as_maps,
    as_rows,
    chunks_of_images,
    chunks_of_rows,
    convolution_backward,
    pointwise_backward,
    zero_where_relu_was,
)
from .workspace import Workspace


def parameters_of(layer: nn.Module) -> tuple[Tensor, ...]:
    """Those of a `DenseLayer`, in the order of use: (c,), (c,), (b, c, 1, 1), (b,), (b,), (k, b, 3, 3)."""
    norm1, norm2 = layer.norm1, layer.norm2
    return norm1.weight, norm1.bias, layer.conv1.weight, norm2.weight, norm2.bias, layer.conv2.weight


NUM_PARAMETERS = 6


@dataclass(frozen=True)
class Layer:
    """What the backward pass needs of a dense layer.

    Attributes:
        norm1: Before the 1x1 convolution.
        norm2: Before the 3x3 convolution.
        keep_rate: 1 - drop rate, of use only with a mask.
        parameters: As `parameters_of` orders them.
        inner: Mean and invstd (b,) of the bottleneck, and the bottleneck (R, b) itself if it is kept.
        mask: bool (R, k), the values that dropout kept; empty without dropout.
    """

    norm1: Norm
    norm2: Norm
    keep_rate: float
    parameters: tuple[Tensor, ...]
    inner: tuple[Tensor, ...]
    mask: tuple[Tensor, ...]

    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """All tensors, in groups."""
        return self.norm1.running, self.norm2.running, self.parameters, self.inner, self.mask

    def with_tensors(self, groups: Iterator[tuple[Tensor, ...]]) -> "Layer":
        """The same layer with the next groups in place of its own."""
        norm1, norm2 = self.norm1.with_running(next(groups)), self.norm2.with_running(next(groups))
        return Layer(norm1, norm2, self.keep_rate, next(groups), next(groups), next(groups))

    def normalisation(self) -> Normalisation:
        """What norm2 normalised the bottleneck with."""
        mean, invstd, *_ = self.inner
        return Normalisation(mean, invstd, not self.norm2.running)

    def keeps_bottleneck(self) -> bool:
        """Whether the bottleneck is there."""
        return len(self.inner) > 2

    def bottleneck(self) -> Tensor:
        """The bottleneck (R, b), if it is kept."""
        return self.inner[2]


@dataclass(frozen=True)
class LayerForward:
    """The forward pass of dense layers, one after the other.

    Attributes:
        buffer: Of the block. What a layer makes is written behind the rest.
        work: Of the block.
        running: Notes how running statistics are to move.
        memory_format: In which the plain network would work; which values dropout drops depends on it.
    """

    buffer: FeatureBuffer
    work: Workspace
    running: RunningStatistics
    memory_format: torch.memory_format

    def run(self, module: nn.Module, parameters: tuple[Tensor, ...], *, keeps_bottleneck: bool) -> Layer:
        """Let a `DenseLayer` read the buffer and write what it makes.

        Args:
            module: Its settings are used.
            parameters: As `parameters_of` orders them.
            keeps_bottleneck: Whether the backward pass finds the bottleneck, or computes it again.

        Returns:
            What `LayerBackward` needs.
        """
        statistics = self.buffer.statistics
        norm1, norm2 = Norm.of(module.norm1), Norm.of(module.norm2)
        self.running.note(module.norm1, statistics.mean, statistics.unbiased)
        gamma1, beta1, weight1, gamma2, beta2, weight2 = parameters
        affine = norm1.reading(gamma1, beta1, statistics, self.buffer.num_rows).affine
        size = self.buffer.num_rows, weight1.shape[0]
        z = self.buffer.rows.new_empty(*size) if keeps_bottleneck else self.work.inner.shaped(*size)
        self.work.fill_inner(z, affine, weight1.to(z.dtype))
        normalisation = norm2.normalisation(z, module.norm2, self.running)
        new = self._new_maps(z, normalisation.affine(gamma2, beta2), weight2.to(z.dtype))
        mask = self._drop(new, module.drop_rate) if module.drop_rate and module.training else ()
        self.buffer.append(new)
        inner = (normalisation.mean, normalisation.invstd, *((z,) if keeps_bottleneck else ()))
        return Layer(norm1, norm2, 1 - module.drop_rate, parameters, inner, mask)

    def _new_maps(self, z: Tensor, affine: Affine, weight: Tensor) -> Tensor:
        """Norm, ReLU and 3x3 convolution of a bottleneck: rows (R, k)."""
        new = z.new_empty(z.shape[0], weight.shape[0])
        for images, chunk in chunks_of_images(self.buffer.rows, self.work.shape, z.shape[1]):
            activated = activate(z[chunk], affine, self.work.inner_chunk)
            new[chunk] = as_rows(F.conv2d(as_maps(activated, self.work.shape_of(images)), weight, padding=1))
        return new

    def _drop(self, new: Tensor, drop_rate: float) -> tuple[Tensor]:
        """Drop values of rows (R, k), and return which ones are kept: those that the plain network keeps."""
        ones = torch.ones_like(as_maps(new, self.work.shape), memory_format=self.memory_format)
        mask = as_rows(F.dropout(ones, drop_rate) != 0)
        new.mul_(mask).div_(1 - drop_rate)
        return (mask,)


class LayerBackward:
    """The backward pass of a dense layer.

    Args:
        layer: What the forward pass noted.
        gradients: Of the block. That of the layer's new maps is taken, that of what it has read grows.
        statistics: Of the block's maps.
        work: Of the block.
    """

    def __init__(self, layer: Layer, gradients: GradientBuffer, statistics: Statistics, work: Workspace):
        self.layer = layer
        self.gradients = gradients
        self.work = work
        gamma1, beta1, weight1, self.gamma2, beta2, weight2 = layer.parameters
        self.num_inner, self.num_inputs, *_ = weight1.shape
        self.weight1, self.weight2 = weight1.to(work.rows.dtype), weight2.to(work.rows.dtype)
        self.reading = layer.norm1.reading(gamma1, beta1, statistics, work.num_rows)
        self.affine = self.reading.affine
        self.normalisation = layer.normalisation()
        self.inner_affine = self.normalisation.affine(self.gamma2, beta2)
        self.grad_of_new = gradients.take(slice(self.num_inputs, self.num_inputs + weight2.shape[0]))
        size = work.num_rows, self.num_inner
        self.z = layer.bottleneck() if layer.keeps_bottleneck() else work.inner.shaped(*size)
        self.grad = work.inner_grad.shaped(*size)

    def run(self) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters."""
        num_columns = max(self.num_inputs, self.num_inner)
        chunks = chunks_of_images(self.work.rows, self.work.shape, num_columns)
        shares = (self._behind_bottleneck(images, chunk) for images, chunk in chunks)
        grad_beta2, grad_gamma2, grad_weight2 = totals(shares, self.affine.scale.dtype)
        through = self.normalisation.gradient(self.gamma2, grad_beta2, grad_gamma2, self.work.num_rows)
        chunks = chunks_of_rows(self.work.rows, num_columns)
        shares = (self._before_bottleneck(chunk, through) for chunk in chunks)
        return *self.gradients.close(self.reading, shares), grad_gamma2, grad_beta2, grad_weight2

    def _behind_bottleneck(self, images: slice, chunk: slice) -> tuple[Tensor, ...]:
        """Write g of the bottleneck's ReLU into a chunk of `grad`, and z into one of `z` if it is not kept.

        Returns:
            The chunk's share of the gradients of beta, gamma and weight.
        """
        if not self.layer.keeps_bottleneck():
            self.work.fill_inner(self.z, self.affine, self.weight1, chunk)
        grad_new = self.grad_of_new(chunk)
        for mask in self.layer.mask:
            grad_new.mul_(mask[chunk]).div_(self.layer.keep_rate)
        activated = activate(self.z[chunk], self.inner_affine, self.work.inner_chunk)
        shape = self.work.shape_of(images)
        maps = as_maps(grad_new, shape), as_maps(activated, shape)
        grad_activated, grad_weight = convolution_backward(*maps, self.weight2, padding=1)
        g = zero_where_relu_was(as_rows(grad_activated), activated)
        self.grad[chunk] = g
        return *self.normalisation.shares(g, self.z[chunk]), grad_weight

    def _before_bottleneck(self, chunk: slice, through: NormGradient) -> tuple[Tensor, ...]:
        """Go back from a chunk of g and z through the norm and the 1x1 convolution to what the layer has read.

        Returns:
            The chunk's share of the gradients of beta, gamma and weight.
        """
        grad_z = through.of(self.grad[chunk], self.z[chunk], self.work.inner_chunk)
        xhat, activated = self.work.read(chunk, self.affine)
        grad_activated, grad_weight = pointwise_backward(grad_z, activated, self.weight1)
        g = zero_where_relu_was(grad_activated, activated)
        return *self.gradients.add(chunk, g, xhat, self.affine), grad_weight
