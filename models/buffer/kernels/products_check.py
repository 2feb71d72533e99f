"""A small bottleneck layer that fused products and PyTorch both compute, to find out whether kernels can be trusted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import capability_of
from ..norms import ChannelNorm
from .products import Bottleneck, Convolution, Inputs, backward, bottleneck, new_maps
from .table import plan

SHAPE = (2, 5, 7)
NUM_ROWS = 70
C, B, K = 20, 48, 12
EPS = 1e-5

Results = list[tuple[str, Tensor, Tensor]]


def results(like: Tensor) -> Results:
    """Compute a layer and its gradients with kernels and with PyTorch.

    No activation is near 0, so that both agree on all signs, and results differ by little more than rounding: by less
    than 1e-6 of their size in float32, 1e-3 in float16, and 1e-2 in bfloat16. TF32 has the digits of float16.

    Args:
        like: A tensor on a device of compute capability 8.0 or later, of the dtype of rows.

    Returns:
        Names of results, with those of kernels and those of PyTorch.
    """
    capability = capability_of(like)
    how = capability and plan(capability, like.dtype, B, K)
    assert how
    layer = _parameters(like)
    x, dy = (_numbers(like, NUM_ROWS, width, frequency=1.3).to(like.dtype) for width in (C, K))
    x += x.sign()
    expected = _by_pytorch(x, dy, layer)
    gamma1, beta1, w1, gamma2, beta2, w2 = layer
    buffer, grads = like.new_zeros(2, NUM_ROWS, 32)
    buffer[:, :C] = x
    variance, mean = torch.var_mean(x.float(), 0, correction=0)
    first = Convolution(ChannelNorm(mean, (variance + EPS).rsqrt(), gamma1, beta1), w1)
    z, grad_z = like.new_empty(2, NUM_ROWS, B)
    mean2, _, invstd2 = bottleneck(buffer[:, :C], first, how, eps=EPS, out=z)
    second = Convolution(ChannelNorm(mean2, invstd2, gamma2, beta2), w2)
    new_maps(z, second, SHAPE, how, eps=EPS, out=buffer[:, C:])
    padded = like.new_zeros(NUM_ROWS, 16)
    padded[:, :K] = dy
    a, d = like.new_zeros(2, C, dtype=torch.float32)
    inputs = Inputs(buffer[:, :C], grads[:, :C], (a, d))
    gradients = backward(padded, inputs, Bottleneck(z, grad_z, False), first, second, SHAPE, how)
    of_x = grads[:, :C].float() - a / NUM_ROWS - (x.float() - mean) * d / NUM_ROWS
    names = ["new feature maps", "the gradient of feature maps", *(f"the gradient of {name}" for name in NAMES)]
    return list(zip(names, [buffer[:, C:], of_x, *gradients], expected, strict=True))


NAMES = ["norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "norm2.bias", "conv2.weight"]


def _parameters(like: Tensor) -> list[Tensor]:
    """Parameters of a layer: of norms whose results are far from 0, and of convolutions."""
    gamma1, gamma2 = (0.3 + 0.1 * _numbers(like, width, frequency=0.9) for width in (C, B))
    beta1 = 0.05 * _numbers(like, C, frequency=1.1)
    beta2 = 1.5 - 3 * (torch.arange(B, device=like.device) % 2).float()  # channels are on or off at all pixels
    w1, w2 = (_numbers(like, *size, frequency=0.7) / size[1] ** 0.5 for size in ((B, C, 1, 1), (K, B, 3, 3)))
    return [gamma1, beta1, w1, gamma2, beta2, w2]


def _numbers(like: Tensor, *size: int, frequency: float) -> Tensor:
    """Numbers from -1 to 1 in float32, drawn from no generator: the user's may not change."""
    count = torch.arange(torch.Size(size).numel(), device=like.device, dtype=torch.float32)
    return torch.sin(count * count * frequency).view(size)  # of `count` alone, matrices would have rank 2


def _by_pytorch(x: Tensor, dy: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The new feature maps (R, k), the gradient of x (R, c), and those of all parameters, from float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, *parameters)]
    rows, gamma1, beta1, w1, gamma2, beta2, w2 = leaves
    images = rows.view(*SHAPE, C).permute(0, 3, 1, 2)
    z = F.conv2d(F.relu(F.batch_norm(images, None, None, gamma1, beta1, True, eps=EPS)), w1)
    y = F.conv2d(F.relu(F.batch_norm(z, None, None, gamma2, beta2, True, eps=EPS)), w2, padding=1)
    y = y.permute(0, 2, 3, 1).reshape(NUM_ROWS, K)
    return [y.detach(), *torch.autograd.grad((y * dy.double()).sum(), leaves)]
