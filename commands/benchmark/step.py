"""What is measured: a training step on a made batch, without the optimizer."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commands.networks import FIXED, network_title
from train.errors import UserError

CLASSES = 10
SEED = 0
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Type of weights and images, and type of autocast. fp64 is for comparisons only.
PRECISIONS = {
    "fp64": (torch.float64, None),
    "fp32": (torch.float32, None),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


class Step:
    """Forward, loss and backward of a network in training mode on one batch.

    Gradients exist from the beginning and are added to in place, so that none of them is counted as memory of a step.

    Args:
        network: Lies where the images lie.
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
        """Where the step runs."""
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
        network: Name of the network, as --network takes it.
        depth: Weighted layers L.
        growth_rate: Channels k that each layer adds.
        batch_size: Images N.
        image_size: H = W of the images.
        drop_rate: Of the network.
        precision: A key of PRECISIONS.
        device: The first GPU or the CPU.
    """

    network: str
    depth: int
    growth_rate: int
    batch_size: int
    image_size: int
    drop_rate: float
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.precision == "fp16" and self.device.type == "cpu":
            raise UserError("--precision is 'fp16', but that needs a GPU; on a CPU it must be fp32 | bf16")

    @property
    def settings(self) -> dict[str, Any]:
        """What to build a network from: flags by their names."""
        names = ("network", "depth", "growth_rate", "drop_rate", "image_size")
        return {name: getattr(self, name) for name in names}

    @property
    def title(self) -> str:
        """The network and the batch in words."""
        dropout = f", dropout {self.drop_rate:g}" if self.drop_rate else ""
        return f"{network_title(self.settings)}{dropout}, batch {self.batch_size} of {self.images}"

    @property
    def has_depth(self) -> bool:
        """Whether the network's depth can be chosen."""
        return self.network not in FIXED

    @property
    def size(self) -> str:
        """The network in a word: its depth, or its name if that decides the depth."""
        return f"L={self.depth}" if self.has_depth else self.network

    @property
    def images(self) -> str:
        """The size of an image in words."""
        return f"{self.image_size}x{self.image_size}"

    def step(self, network: nn.Module, memory_format: str) -> Step:
        """Move a network to the device, with a made batch."""
        dtype, autocast = PRECISIONS[self.precision]
        layout = {"dtype": dtype, "memory_format": MEMORY_FORMATS[memory_format]}
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size, generator=generator)
        labels = torch.arange(self.batch_size) % CLASSES
        network = network.to(self.device, **layout)
        return Step(network, images.to(self.device, **layout), labels.to(self.device), autocast)
