"""The machine: its devices, how reproducible they are, and how much memory they use.

No other file names a kind of device, except files of the benchmark that measure each kind in its own way.
"""

import gc
import os
import platform
import random
import secrets
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.terminal import warn

VISIBLE = "CUDA_VISIBLE_DEVICES"


def pick_device(processes: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """Return the device of this process: a CUDA device of its own, or the CPU if no process has one.

    `CUDA_VISIBLE_DEVICES` decides what is visible. A warning says so if it names more devices than there are.

    Args:
        processes: The processes of the run.

    Raises:
        UserError: If a machine has fewer devices than processes. All processes raise it.
    """
    own = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_named(os.environ.get(VISIBLE, "")) > own:
        warn(_missing_devices(own))
    most, missing = processes.all_reduce_max(own, processes.local_rank + 1 - own)
    if not most:
        return torch.device("cpu")
    if missing > 0:
        raise UserError(
            f"torchrun has started {missing} too many processes on a machine: each needs a visible GPU of its own"
        )
    return torch.device("cuda", processes.local_rank)


def num_named(visible: str) -> int:
    """Return how many devices a value of CUDA_VISIBLE_DEVICES names, up to the first that cannot be one, such as -1."""
    names = [name.strip() for name in visible.split(",")]
    is_one = [bool(name) and not name.startswith("-") and name != "NoDevFiles" for name in names]
    return [*is_one, False].index(False)


def _missing_devices(found: int) -> str:
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
    """Compute on the CPU with this many threads. None leaves it to torch: all cores, or OMP_NUM_THREADS if set."""
    if threads is not None:
        torch.set_num_threads(threads)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in the memory format in which its convolutions are fastest, and return it."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # a stub lacks this form


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss for "fp16", where small gradients would vanish; disabled in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def be_deterministic() -> None:
    """Make equal runs give equal bits on one machine, wherever PyTorch can.

    Call it before anything runs on a GPU. An operation without a deterministic implementation warns and does not fail.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise every new tensor is filled, which only helps to find bugs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.benchmark = False


def be_fast() -> None:
    """Let cuDNN choose its algorithms by their speed, and let parallel sums be added in any order."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True


def use_precision(precision: str) -> None:
    """Compute convolutions of float32 on GPUs in TF32, PyTorch's default, for "tf32", and in IEEE float32 otherwise.

    TF32 rounds the factors to 10 bits after the point, where float32 has 23; sums are float32 in both. The product of
    the classifier, which takes hardly any time, is IEEE float32 in any case.
    """
    # PyTorch has newer settings, too. Where they were used, reading the older ones raises an error, and compilers and
    # exporters still read them. Where the older ones are used, both can be read; PyTorch 2.9 and 2.10 warn of them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False


def require_tf32(device: torch.device, processes: ProcessGroup = SINGLE_PROCESS) -> None:
    """Make sure that the devices of all processes can compute in TF32.

    Raises:
        UserError: If one cannot. All processes raise it.
    """
    has_tf32 = device.type == "cuda"
    if has_tf32:
        with torch.cuda.device(device):
            has_tf32 = torch.cuda.is_tf32_supported()
    if any(processes.all_reduce_max(int(not has_tf32))):
        raise UserError(
            "--precision is 'tf32', but that needs a GPU of compute capability 8.0 or higher; fp32 runs on every device"
        )


def draw_seed() -> int:
    """Return a random seed that is short enough to be typed again."""
    return secrets.randbelow(2**31)


def seed_weights(seed: int) -> None:
    """Make the initial weights of the network that is built next a function of the seed."""
    torch.manual_seed(random.Random(f"weights, seed {seed}").getrandbits(63))


def seed_epoch(seed: int, epoch: int, processes: ProcessGroup = SINGLE_PROCESS, *, num_steps: int = 0) -> None:
    """Make the dropout of an epoch a function of (seed, epoch), so that a run resumed there needs no generator's state.

    Each GPU and each process gets a random stream of its own, so that the parts of a batch do not share one mask.

    Args:
        seed: The seed of the run.
        epoch: The epoch, counted from 1.
        processes: The processes of the run.
        num_steps: Steps of the epoch that are taken already, by processes or devices whose random streams these ones
            cannot go on with. The rest of the epoch then depends on this too.
    """
    process = f", process {processes.rank}" if processes.rank else ""
    steps = f", after {num_steps} steps" if num_steps else ""
    stream = random.Random(f"dropout, seed {seed}, epoch {epoch}{process}{steps}")
    torch.manual_seed(stream.getrandbits(63))
    for i in range(torch.cuda.device_count() if processes.world_size == 1 else 0):
        with torch.cuda.device(i):
            torch.cuda.manual_seed(stream.getrandbits(63))


def random_states(processes: ProcessGroup = SINGLE_PROCESS) -> list[Tensor]:
    """Return the states of all random streams that `seed_epoch` begins: of the CPU and of this process's GPUs.

    Each is uint8 (n,), on the CPU.
    """
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in _own_gpus(processes))]


def set_random_states(states: list[Any], processes: ProcessGroup = SINGLE_PROCESS) -> bool:
    """Go on with random streams.

    Args:
        states: What `random_states` returned once, for the devices of that time.
        processes: The processes of the run.

    Returns:
        Whether they could be used: not if the devices are others now. Streams are then to be seeded.
    """
    own = random_states(processes)
    if [_kind(state) for state in states] != [_kind(state) for state in own]:
        return False
    try:
        torch.set_rng_state(states[0])
        for i, state in zip(_own_gpus(processes), states[1:], strict=True):
            torch.cuda.set_rng_state(state, i)
    except RuntimeError:  # no state of a generator
        return False
    return True


def _kind(state: Any) -> tuple[torch.dtype, torch.Size] | None:
    return (state.dtype, state.shape) if isinstance(state, Tensor) else None


def _own_gpus(processes: ProcessGroup) -> list[int]:
    """Return the indices of the GPUs of this process: all, if it is the only one."""
    if processes.world_size == 1:
        return list(range(torch.cuda.device_count()))
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory`; on a CPU this does nothing."""
    if device.type == "cuda":
        for i in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(i)


def peak_memory(device: torch.device) -> float | None:
    """Return the largest memory in use at once, in MB of 10^6 bytes.

    On GPUs it is that of tensors since `reset_peak_memory`, on the GPU that used most; a CUDA graph takes its memory
    when it is captured, and not when it runs. On a CPU it is that of the whole process since its start, or None where
    it is unknown.
    """
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def release_memory() -> None:
    """Free the memory of a network that is not used any more, before another one is trained in the same process."""
    gc.collect()  # modules and their hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def copy_to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state_dict on the CPU, in the contiguous memory format, that training does not change."""
    return {
        name: value.detach().to(device="cpu", memory_format=torch.contiguous_format, copy=True)
        for name, value in state.items()
    }
