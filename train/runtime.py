"""The machine: which devices, how reproducible, how much memory.

No other file names a kind of device, but for those of the benchmark that measure on each kind in its own way.
"""

import os
import platform
import random
import secrets
from pathlib import Path

import torch
from torch import Tensor, nn

from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.terminal import warn

VISIBLE = "CUDA_VISIBLE_DEVICES"


def pick_device(processes: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """A CUDA device for each process of a machine, or the CPU if no process has one.

    `CUDA_VISIBLE_DEVICES` decides what is visible. A warning says so if it names more devices than there are.

    Raises:
        UserError: If a machine has fewer devices than processes. All processes raise it.
    """
    own = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_named(os.environ.get(VISIBLE, "")) > own:
        warn(_lacking_devices(own))
    most, lacking = processes.all_reduce_max(own, processes.local_rank + 1 - own)
    if not most:
        return torch.device("cpu")
    if lacking > 0:
        raise UserError(
            f"torchrun has started {lacking} too many processes on a machine: each needs a visible GPU of its own"
        )
    return torch.device("cuda", processes.local_rank)


def num_named(visible: str) -> int:
    """How many devices a value of CUDA_VISIBLE_DEVICES names: those before the first that cannot be one, such as -1."""
    names = [name.strip() for name in visible.split(",")]
    is_one = [bool(name) and not name.startswith("-") and name != "NoDevFiles" for name in names]
    return [*is_one, False].index(False)


def _lacking_devices(found: int) -> str:
    line = f"{VISIBLE} is {os.environ[VISIBLE]!r}, but PyTorch finds "
    if found:
        return f"{line}{found} GPU{'s' if found > 1 else ''}"
    is_built_for_gpus = torch.version.cuda or torch.version.hip
    why = "nvidia-smi shows the GPUs and their driver" if is_built_for_gpus else "this PyTorch was built without CUDA"
    return f"{line}no GPU and works on the CPU; {why}"


def describe_device(device: torch.device, processes: ProcessGroup = SINGLE_PROCESS) -> str:
    """Name all devices of a run, for example "2 x NVIDIA H200", "CPU, 8 threads" or "3 processes, each ..."."""
    if processes.world_size > 1:
        own = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_device(device)
        return f"{processes.world_size} processes, each {own}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}" if len(set(names)) == 1 else ", ".join(names)


def describe_processor(device: torch.device) -> str:
    """Name the model of one device, for example "NVIDIA H200" or "AMD EPYC"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def use_threads(threads: int | None) -> None:
    """Work on the CPU with this many threads. None leaves it to torch: all cores, or OMP_NUM_THREADS if that is set."""
    if threads is not None:
        torch.set_num_threads(threads)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, in the memory format that its convolutions are fastest in."""
    return network.to(device, memory_format=torch.channels_last)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What scales the loss in "fp16", so that small gradients do not vanish; switched off in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def be_deterministic() -> None:
    """Make equal runs give equal bits on one machine, wherever PyTorch can.

    Call it before the first work on a GPU. An operation that has no deterministic form warns instead of failing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over every new tensor, of use to find bugs
    torch.backends.cudnn.benchmark = False


def draw_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return secrets.randbelow(2**31)


def seed_weights(seed: int) -> None:
    """Make the initial weights that are drawn next a function of the seed."""
    torch.manual_seed(random.Random(f"weights, seed {seed}").getrandbits(63))


def seed_epoch(seed: int, epoch: int, processes: ProcessGroup = SINGLE_PROCESS) -> None:
    """Make the dropout of an epoch a function of (seed, epoch): a resumed run needs no generator's state.

    Each GPU and each process gets a stream of its own, so that the parts of a batch do not share one mask.
    """
    process = f", process {processes.rank}" if processes.rank else ""
    stream = random.Random(f"dropout, seed {seed}, epoch {epoch}{process}")
    torch.manual_seed(stream.getrandbits(63))
    for i in range(torch.cuda.device_count() if processes.world_size == 1 else 0):
        with torch.cuda.device(i):
            torch.cuda.manual_seed(stream.getrandbits(63))


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory`, where the device can."""
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


def peak_memory(device: torch.device) -> float | None:
    """Most memory in use at once, in MB of 10^6 bytes.

    On GPUs: of tensors since `reset_peak_memory`, on the GPU that used most. On a CPU: of the whole process since it
    began, or None where the system does not tell.
    """
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def copy_to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state_dict that further training does not touch, in the plain memory format."""
    plain = {"device": "cpu", "memory_format": torch.contiguous_format, "copy": True}
    return {name: value.detach().to(**plain) for name, value in state.items()}
