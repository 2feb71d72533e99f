"""Whether kernels can be used on a device, found out by running them there.

The first feature maps of a kind on a device decide it, by small cases that kernels and PyTorch both compute. So
where a compiler or a driver does not work with the kernels, a run is slower, but goes on with right gradients.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..device import Capability, capability_of
from ..norms import ChannelNorm
from .launch import recorded
from .table import OLDEST, precision_of_products

LEAST_TRITON = (3, 6)  # comes with PyTorch 2.10
LEAST_CAPABILITY = (7, 5)  # of what current versions of PyTorch are built for

# Largest difference from PyTorch, as a share of the norm of a result. Wrong results are far beyond it.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_OF_TF32 = 1e-2  # of products, which have the digits of float16

# Names of results, with those of kernels and those of PyTorch.
Results = list[tuple[str, Tensor, Tensor]]

_answers: dict[tuple[torch.device, Capability, torch.dtype, str], str] = {}
_lock = Lock()  # of the threads of nn.DataParallel


def are_usable(x: Tensor) -> bool:
    """Tell whether kernels can be used for rows like x. If they fail on a device that should have them, warn once.

    The first call for a device and dtype compiles the kernels and runs them, so it takes seconds and waits for the
    device. No random numbers are drawn.
    """
    return not why_not(x)


def why_not(x: Tensor) -> str:
    """Say in one line why kernels cannot be used for rows like x; empty if they can."""
    return _why_impossible(x) or _why_failing(x)


def _why_failing(x: Tensor) -> str:
    """Say why kernels fail that should work; empty if they do not."""
    capability = capability_of(x)
    if capability is None or isinstance(x, FakeTensor):  # on fake tensors, nothing can go wrong
        return ""
    key = x.device, capability, x.dtype, precision_of_products()
    # An answer is given without the lock: whoever holds it waits for a backward pass, which another thread may be in.
    if key in _answers:
        return _answers[key]
    with _lock:
        if key not in _answers:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return "they have to be used once before they can be captured in a CUDA graph"
            _answers[key] = _difference(x, capability)
            if _answers[key]:
                warnings.warn(f"slower operations take the place of kernels, {_answers[key]}", stacklevel=1)
        return _answers[key]


def _why_impossible(x: Tensor) -> str:
    """Say in one line why no kernels exist for rows like x, which is nothing to warn of; empty if they do."""
    capability = capability_of(x)
    if capability is None:
        return f"they need an NVIDIA GPU, and tensors are on {x.device}"
    if capability < LEAST_CAPABILITY:
        return f"they need compute capability {_version(LEAST_CAPABILITY)}, and {x.device} has {_version(capability)}"
    if x.dtype not in TOLERANCE:
        return f"they do not compute in {str(x.dtype).removeprefix('torch.')}"
    try:
        import triton
    except ImportError:
        return f"they need the package triton {_version(LEAST_TRITON)} or later"
    if tuple(map(int, triton.__version__.split(".")[:2])) < LEAST_TRITON:
        return f"they need triton {_version(LEAST_TRITON)} or later, and {triton.__version__} is installed"
    return ""


def _version(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


def _difference(x: Tensor, capability: Capability) -> str:
    """Compare kernels with PyTorch on the device of x, and say where they differ or what has failed."""
    try:
        is_tf32 = x.dtype == torch.float32 and precision_of_products() == "tf32"
        with _undisturbed(x.device):
            for least, stage in STAGES:
                if capability < least:
                    continue
                tolerance = TOLERANCE_OF_TF32 if is_tf32 and stage is _products else TOLERANCE[x.dtype]
                for name, *results in stage(x):
                    actual, expected = (result.detach().double() for result in results)
                    difference = float((actual - expected).norm() / expected.norm())
                    if not difference <= tolerance:  # NaN differs too
                        return f"{name} differs from PyTorch's by {difference:.0e} of its size on {x.device}"
    except Exception as error:  # whatever a compiler or a driver raises
        lines = str(error).strip().splitlines()
        return f"they fail on {x.device}: {type(error).__name__}{': ' + lines[0] if lines else ''}"
    return ""


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Compute on a device in the same way wherever in a step the first feature maps are met."""
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    plain = torch.autocast(device.type, enabled=False)
    with on_device, torch.inference_mode(False), torch.enable_grad(), plain, recorded(lambda _: None):
        yield


def _norms(like: Tensor) -> Results:
    """A norm of 2 images of 5 x 7 pixels, read as it is, pooled and averaged: results and gradients."""
    from .backward import NormSums, finish_gradient, norm_backward
    from .forward import Moments, activate, activate_and_average, activate_and_pool

    shape, num_rows, c = (2, 5, 7), 70, 20

    def numbers(*size: int, frequency: float) -> Tensor:
        count = torch.arange(torch.Size(size).numel(), device=like.device, dtype=torch.float32)
        return torch.sin(count * frequency).view(size)

    rows = (3 + numbers(num_rows, c, frequency=0.7)).to(like.dtype).requires_grad_()
    weight, bias = (numbers(c, frequency=f).requires_grad_() for f in (1.1, 1.7))
    images = rows.float().view(*shape, c).permute(0, 3, 1, 2)
    expected = F.relu(F.batch_norm(images, None, None, weight, bias, training=True))
    as_read = [expected, F.avg_pool2d(expected, 2), expected.mean((2, 3), keepdim=True)]
    as_read = [result.permute(0, 2, 3, 1).reshape(-1, c) for result in as_read]
    grads = [numbers(*result.shape, frequency=0.3).to(like.dtype) for result in as_read]
    losses = [(result * grad).sum() for result, grad in zip(as_read, grads, strict=True)]
    (alone,) = torch.autograd.grad(losses[0], [rows], retain_graph=True)
    together = torch.autograd.grad(torch.stack(losses).sum(), [rows, weight, bias])
    with torch.no_grad():
        x, gradients = rows.new_zeros(2, num_rows, 32)[:, :, :c]
        moments = Moments()
        moments.add(rows, out=x)
        mean, _, invstd = moments.result(1e-5)
        norm = ChannelNorm(mean, invstd, weight.detach(), bias.detach())
        activated = activate(x, norm, torch.empty_like(rows))
        pooled = activate_and_pool(x, norm, shape, torch.empty_like(grads[1]))
        averaged = activate_and_average(x, norm, shape)
        collected = x.new_zeros(c, dtype=torch.float32), x.new_zeros(c, dtype=torch.float32)
        sums = NormSums(norm)
        sums.add_to(gradients, grads[0], x, is_first=True)
        sums.add_pooled_to(gradients, grads[1], x, shape)
        sums.add_averaged_to(gradients, grads[2], x, shape)
        total, product = sums.result(collected)
        gradient = finish_gradient(gradients, x, mean, collected, num_rows, torch.empty_like(rows))
        sums = NormSums(norm)
        sums.mask(grads[0], x)
        gradient_alone = norm_backward(grads[0], x, norm, sums.result(), num_rows, grads[0])
    return [
        ("a norm", activated, as_read[0]),
        ("a pooled norm", pooled, as_read[1]),
        ("an averaged norm", averaged, as_read[2]),
        ("the gradient of a weight", product, together[1]),
        ("the gradient of a bias", total, together[2]),
        ("the gradient of feature maps", gradient, together[0]),
        ("the gradient of a bottleneck", gradient_alone, alone),
    ]


def _products(like: Tensor) -> Results:
    """A bottleneck layer by fused products."""
    from .products_check import results

    return results(like)


# Small cases, each with the least capability that has its kernels.
STAGES: list[tuple[Capability, Callable[[Tensor], Results]]] = [(LEAST_CAPABILITY, _norms), (OLDEST, _products)]
