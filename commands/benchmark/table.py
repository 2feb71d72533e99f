"""The case of a measurement, in the columns of a CSV file and in the line below a table."""

import platform
from importlib.metadata import version

import torch

from commands.benchmark.step import Case
from train import runtime

MB = 1e6


def record_of(case: Case) -> dict[str, object]:
    """The case and the machine as columns of a CSV file."""
    batch = {"batch_size": case.batch_size, "precision": case.precision}
    machine = {"processor": runtime.describe_processor(case.device), "cpu_threads": torch.get_num_threads()}
    return case.settings | batch | machine | {"torch": version("torch"), "torchvision": version("torchvision")}


def conditions(case: Case, *, rounds: int = 0) -> str:
    """How it was measured: device, threads, precision, versions, batch, and rounds if time was measured."""
    cuda = [f"CUDA {torch.version.cuda}"] if case.device.type == "cuda" else []
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision")]
    versions = ", ".join([f"Python {platform.python_version()}", *packages, *cuda])
    threads = f"{torch.get_num_threads()} CPU thread{'s' if torch.get_num_threads() > 1 else ''}"
    batch = f"batch {case.batch_size} of {case.images}"
    times = f", {rounds} round{'s' if rounds > 1 else ''}" if rounds else ""
    return f"{runtime.describe_processor(case.device)}, {threads}, {case.precision}; {versions}; {batch}{times}"
