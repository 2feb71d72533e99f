"""The training step that is measured, without the optimizer, and the words and columns that describe it."""

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commands.networks import NetworkSettings
from train import runtime
from train.errors import UserError

MB = 1e6
CLASSES = 10
SEED = 0
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Type of weights and images, and type of autocast. fp64 is for comparisons only.
PRECISIONS = {
    "fp64": (torch.float64, None),
    "fp32": (torch.float32, None),
    "tf32": (torch.float32, None),  # like fp32, but products round their operands to 10 bits
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


class Step:
    """Forward, loss and backward of a network in training mode on one batch.

    Gradients exist from the start and are accumulated in place, so that they do not count as memory of a step.

    Args:
        network: On the device of the images.
        images: (N, 3, H, W).
        labels: (N,).
        autocast: Type that autocast converts to, or None for no autocast.
    """

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor, autocast: torch.dtype | None = None):
        self.network, self.images, self.labels, self.autocast = network.train(), images, labels, autocast
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @property
    def device(self) -> torch.device:
        """The device that the step runs on."""
        return self.images.device

    def forward(self) -> Tensor:
        """Return the loss () with its graph."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return F.cross_entropy(self.network(self.images), self.labels)

    def __call__(self) -> Tensor:
        """Run the step and return its loss () without a graph."""
        self.network.zero_grad(set_to_none=False)
        loss = self.forward()
        loss.backward()
        return loss.detach()


@dataclass(frozen=True)
class Case:
    """A network, a batch, and where and how a step with them runs.

    Attributes:
        network: The network. Its dropout, if any, is after the 3x3 convolution of a dense layer.
        batch_size: Images N.
        precision: A key of PRECISIONS.
        device: The first GPU or the CPU.
    """

    network: NetworkSettings
    batch_size: int
    precision: str
    device: torch.device

    def require_precision(self) -> None:
        """Make sure that the device can compute in the precision.

        Raises:
            UserError: If it cannot.
        """
        if self.precision == "fp16" and self.device.type == "cpu":
            raise UserError("--precision is 'fp16', but that needs a GPU; on a CPU it must be fp32 | bf16")
        if self.precision == "tf32":
            runtime.require_tf32(self.device)

    def resized(
        self, *, network: NetworkSettings | None = None, depth: int | None = None, batch_size: int | None = None
    ) -> Self:
        """The same case with another network, another depth of it, or another batch."""
        network = network or self.network
        if depth is not None:
            network = replace(network, depth=depth)
        return replace(self, network=network, batch_size=batch_size or self.batch_size)

    @property
    def title(self) -> str:
        """The network and the batch in words."""
        dropout = f", dropout {self.network.drop_rate:g}" if self.network.drop_rate else ""
        return f"{self.network.title}{dropout}, {self.batch}"

    @property
    def size(self) -> str:
        """The network in a word: its depth, or its name if the name decides the depth."""
        return f"L={self.network.depth}" if self.network.has_depth else self.network.network

    @property
    def batch(self) -> str:
        """The batch in words."""
        return f"batch {self.batch_size} of {self.network.image_size}x{self.network.image_size}"

    def layout(self, memory_format: str) -> dict[str, Any]:
        """Type and memory format of weights and images, as arguments of `to`."""
        return {"dtype": PRECISIONS[self.precision][0], "memory_format": MEMORY_FORMATS[memory_format]}

    def step(self, network: nn.Module, memory_format: str) -> Step:
        """Move a network to the device, and return its step on a synthetic batch."""
        return self.step_with(network.to(self.device, **self.layout(memory_format)), memory_format)

    def step_with(self, network: nn.Module, memory_format: str) -> Step:
        """Return the step of a network that is on the device already, on a synthetic batch."""
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randn(self.batch_size, 3, self.network.image_size, self.network.image_size, generator=generator)
        images = images.to(self.device, **self.layout(memory_format))
        labels = torch.arange(self.batch_size) % CLASSES
        return Step(network, images, labels.to(self.device), PRECISIONS[self.precision][1])


def record_of(case: Case) -> dict[str, object]:
    """The case and the machine as columns of a CSV file."""
    batch = {"batch_size": case.batch_size, "precision": case.precision}
    machine = {"processor": runtime.describe_processor(case.device), "cpu_threads": torch.get_num_threads()}
    network = case.network
    settings = {
        "network": network.network,
        "depth": network.depth,
        "growth_rate": network.growth_rate,
        "drop_rate": network.drop_rate,
        "image_size": network.image_size,
    }
    return settings | batch | machine | {"torch": version("torch"), "torchvision": version("torchvision")}


def conditions(case: Case, *, rounds: int = 0) -> str:
    """The conditions of a measurement: device, threads, precision, versions, batch, and rounds if it was timed."""
    cuda = [f"CUDA {torch.version.cuda}"] if case.device.type == "cuda" else []
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision")]
    versions = ", ".join([f"Python {platform.python_version()}", *packages, *cuda])
    threads = f"{torch.get_num_threads()} CPU thread{'s' if torch.get_num_threads() > 1 else ''}"
    times = f", {rounds} round{'s' if rounds > 1 else ''}" if rounds else ""
    return f"{runtime.describe_processor(case.device)}, {threads}, {case.precision}; {versions}; {case.batch}{times}"
