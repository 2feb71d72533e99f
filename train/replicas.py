"""What is called in place of a network: in some precision, compiled, and on several devices."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class InPrecision(nn.Module):
    """A network whose convolutions and products run in another type, with logits in that of its weights.

    Autocast begins here, inside of what is called, because threads of nn.DataParallel do not inherit it.

    Args:
        network: Its weights stay as they are.
        dtype: For autocast; None for no autocast.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, H, W) to logits (n, classes). Without images there are none, with gradients of 0."""
        if not len(images):
            return self._no_logits()
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.network(images)
        return logits.float() if self.dtype else logits

    def _no_logits(self) -> Tensor:
        """All parameters take part, because other processes wait for a gradient of each."""
        nothing = sum(parameter.sum() * 0 for parameter in self.network.parameters())
        return nothing.expand(0, self.network.classifier.out_features)


@dataclass(frozen=True)
class Replicas:
    """A network and what to call in its place.

    Attributes:
        network: What is saved. All others share its weights.
        training: Takes this process's part of a batch.
        evaluation: Likewise; does not wait for other processes.
    """

    network: nn.Module
    training: nn.Module
    evaluation: nn.Module


def require_devices(
    device: torch.device, *, compile: bool, sync_bn: bool, processes: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Make sure that `replicate` can do what is asked for.

    Raises:
        UserError: If the devices of the run cannot do it.
    """
    if compile and _in_threads(device, processes):
        raise UserError(
            f"--compile True works with one GPU for each process, but this one sees {torch.cuda.device_count()}: put "
            "torchrun --nproc_per_node=N before demo.py, or let CUDA_VISIBLE_DEVICES name one"
        )
    if sync_bn and device.type != "cuda":
        raise UserError("--sync_bn True works between processes on GPUs, but there is none")


def _in_threads(device: torch.device, processes: ProcessGroup) -> bool:
    return processes.world_size == 1 and device.type == "cuda" and torch.cuda.device_count() > 1


def replicate(
    network: nn.Module,
    device: torch.device,
    *,
    precision: str = "fp32",
    compile: bool = False,
    sync_bn: bool = False,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Replicas:
    """Let a network run in some precision on all devices.

    Several processes of a processes use a device each. A single process uses all visible GPUs if its device is one.

    Args:
        network: Lies on `device`.
        device: Of this process.
        precision: A key of PRECISIONS.
        compile: Let torch.compile have the network; see `require_devices`.
        sync_bn: Normalise with the statistics of all processes' images together.
        processes: The processes of the run.
    """
    if sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    model: nn.Module = InPrecision(network, PRECISIONS[precision])
    if compile:
        model = torch.compile(model)
    if processes.world_size > 1:
        own = [device] if device.type == "cuda" else None
        return Replicas(network, DistributedDataParallel(model, device_ids=own, gradient_as_bucket_view=True), model)
    if _in_threads(device, processes):
        model = nn.DataParallel(model)
    return Replicas(network, model, model)
