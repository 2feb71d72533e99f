"""Steps in CUDA graphs, and the time of the host, which on a GPU is apart from that of the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from commands.benchmark.measure import host_seconds_of
from commands.benchmark.step import Case, Step
from commands.benchmark.variants import Variant
from train.cuda_graph import CaptureError, CudaGraphs, Graphs
from train.terminal import warn

# Images of the step whose host time is measured: so few that the device is always ready for the next kernel, where the
# host has to wait for its queue in a large step. Batch norm needs two.
HOST_BATCH = 2


@dataclass(frozen=True)
class CapturedStep:
    """A step in a CUDA graph.

    Attributes:
        device: The device that it runs on.
        replay: Runs it.
    """

    device: torch.device
    replay: Callable[[], None]

    def __call__(self) -> None:
        """Run the step."""
        self.replay()


def graphs_of(device: torch.device) -> Graphs | None:
    """Return what captures CUDA graphs on a device; None if it has none."""
    return CudaGraphs(device) if device.type == "cuda" else None


def capture(variant: Variant, step: Step, graphs: Graphs) -> CapturedStep | None:
    """Capture a step that has run before. A warning says why it cannot be captured, if it cannot.

    Args:
        variant: The way to train.
        step: Its step. The gradients of its network must not be replaced afterwards.
        graphs: Captures it.
    """

    def run() -> None:
        step()

    try:
        graphs.warm_up(run)
        return CapturedStep(step.device, graphs.capture(run))
    except (CaptureError, torch.OutOfMemoryError) as error:
        reason = str(error).partition("\n")[0]
        warn(f"{variant.name} {variant.memory_format} has no row for a CUDA graph: {reason}")
        return None


def host_seconds(variant: Variant, step: Step, case: Case, *, rounds: int) -> list[float]:
    """Measure the seconds in which Python gives a GPU the work of a step, in each round.

    Args:
        variant: The way to train.
        step: Its step. Its network gets new gradients.
        case: The network, and a batch that is not used.
        rounds: How often.

    Returns:
        Empty without a GPU, where calls compute, and for a compiled network, which would be compiled again.
    """
    if case.device.type != "cuda" or variant.is_compiled:
        return []
    small = case.resized(batch_size=HOST_BATCH).step_with(step.network, variant.memory_format)
    small()  # allocates what libraries keep
    return [host_seconds_of(small, case.device) for _ in range(rounds)]
