"""Modules that are called in place of a network: in some precision, compiled, and on several devices."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train import runtime
from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.program_name import TORCHRUN_WORDS

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class InPrecision(nn.Module):
    """A network whose convolutions and matrix products run in another dtype, with logits in the dtype of its weights.

    Autocast is entered in here, because threads of nn.DataParallel do not inherit it.

    Args:
        network: The network; its weights keep their dtype.
        dtype: The dtype of autocast; None for no autocast.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, classes). For n = 0 the gradient of every parameter is 0."""
        if not len(images):
            return self._no_logits()
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.network(images)
        return logits.float() if self.dtype else logits

    def _no_logits(self) -> Tensor:
        """Return logits (0, classes) that depend on all parameters: other processes wait for a gradient of each."""
        classifier = self.network.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        nothing = torch.stack([parameter.sum() * 0 for parameter in self.network.parameters()]).sum()
        return nothing.expand(0, classifier.out_features)


@dataclass(frozen=True)
class Replicas:
    """A network and the modules that are called in its place. All of them share its weights.

    Attributes:
        network: The network itself, which is saved.
        training: Called with this process's part of a batch; exchanges gradients with the other processes.
        evaluation: Called with this process's part of a batch; does not wait for other processes.
    """

    network: nn.Module
    training: nn.Module
    evaluation: nn.Module


def require_devices(
    device: torch.device,
    *,
    precision: str = "fp32",
    compile: bool = False,
    sync_bn: bool = False,
    cuda_graph: bool = False,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Make sure that the devices of the run can do what is asked for.

    Args:
        device: The device of this process.
        precision: As for `replicate`.
        compile: As for `replicate`.
        sync_bn: As for `replicate`.
        cuda_graph: Whether steps are captured in CUDA graphs.
        processes: The processes of the run.

    Raises:
        UserError: If they cannot.
    """
    if precision == "tf32":
        runtime.require_tf32(device, processes)
    if compile and _in_threads(device, processes):
        raise UserError(
            f"--compile True works with one GPU for each process, but this one sees {torch.cuda.device_count()}: start "
            f"it by torchrun --nproc_per_node=N {' '.join(TORCHRUN_WORDS)}, or let CUDA_VISIBLE_DEVICES name one"
        )
    if cuda_graph and device.type != "cuda":
        raise UserError("--cuda_graph True needs a GPU, but there is none: leave it out, or set it to False")
    if cuda_graph and _in_threads(device, processes):
        raise UserError(
            f"--cuda_graph True works with one GPU, but this process sees {torch.cuda.device_count()}: let "
            "CUDA_VISIBLE_DEVICES name one"
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
    """Prepare a network to run in some precision on all devices.

    Each of several processes uses one device. A single process uses all visible GPUs if its device is one of them.

    Args:
        network: A network on `device`.
        device: The device of this process.
        precision: A key of PRECISIONS.
        compile: Compile the network by torch.compile; see `require_devices`.
        sync_bn: Normalise with statistics over the images of all processes.
        processes: The processes of the run.
    """
    if sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    model: nn.Module = InPrecision(network, PRECISIONS[precision])
    if compile:
        compiled = torch.compile(model)
        assert isinstance(compiled, nn.Module)
        model = compiled
    if processes.world_size > 1:
        own = [device] if device.type == "cuda" else None
        # Otherwise the buffers are sent before every forward pass. Each process may have running statistics of its own:
        # training does not read them, and those of the main process are shared before anything is evaluated.
        processes.broadcast(network.buffers())
        options: dict[str, Any] = {_sync_buffers_option(): False}
        training = DistributedDataParallel(model, device_ids=own, gradient_as_bucket_view=True, **options)
        return Replicas(network, training, model)
    if _in_threads(device, processes):
        model = nn.DataParallel(model)
    return Replicas(network, model, model)


def _sync_buffers_option() -> str:
    """Return the argument that sends buffers before each forward pass, which torch 2.14 has renamed."""
    names = inspect.signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
