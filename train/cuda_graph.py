"""Steps in CUDA graphs: a device repeats a whole step by itself, and Python only starts it.

A graph records every kernel that a function launches, with the addresses that the kernel reads and writes. It repeats
those, and none of the Python between them. So a function can be captured if it never waits for the device, and if all
that lasts from one step to the next is in tensors that are changed in place.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from train.terminal import warn

EAGER_STEPS = 3  # of each shape of batch: it comes again, and libraries have allocated what they keep


class CaptureError(Exception):
    """A function could not be captured. It has changed nothing on the device."""


class Graphs(Protocol):
    """Captures functions, of which only one runs at a time."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run a function as it will be captured."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function does on the device, without doing it there.

        Returns:
            Does it.

        Raises:
            CaptureError: If the function cannot be captured.
        """
        ...


class CudaGraphs:
    """CUDA graphs of one device. They share their memory, which stays reserved between two of their runs.

    Args:
        device: A CUDA device with an index.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # the default stream cannot be captured
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run a function on the stream that is captured later, for which cuBLAS has a workspace of its own."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Graphs`. Waits for the device."""
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self._device.index]
        random_state = generator.clone_state()
        try:
            # A capture that fails may leave its stream as the current one; the outer context does not.
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                function()
        except Exception as error:
            # In older versions of PyTorch, the capture goes on for the generator and the allocator.
            generator.graphsafe_set_state(random_state)
            with suppress(RuntimeError):  # it has ended
                torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            raise CaptureError(_reason(error)) from error
        return graph.replay


class _CapturedStep(NamedTuple):
    """A step that was captured, and the batch that it reads."""

    images: Tensor
    labels: Tensor
    replay: Callable[[], None]


class CapturedSteps:
    """Takes steps, and captures those whose shape of batch comes again.

    The first steps of a shape are taken eagerly. If one cannot be captured, a warning says why, and all further steps
    are eager. In any case a step has the same result.

    Args:
        step: Takes a step with images, labels, and the size of the batch, eagerly.
        graphs: Captures it.
        discard: Undoes what a step that has failed in the middle has set in Python.
    """

    def __init__(self, step: Callable[[Tensor, Tensor, int], None], graphs: Graphs, *, discard: Callable[[], None]):
        self._step = step
        self._graphs: Graphs | None = graphs
        self._discard = discard
        self._num_eager: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _CapturedStep] = {}

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        """Take a step."""
        shape = images.shape, size
        if self._graphs and self._num_eager[shape] < EAGER_STEPS:
            self._num_eager[shape] += 1
            self._graphs.warm_up(lambda: self._step(images, labels, size))
            return
        if self._graphs and shape not in self._captured:
            self._capture(self._graphs, images, labels, size)
        captured = self._captured.get(shape)
        if captured is None:
            self._step(images, labels, size)
            return
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        captured.replay()

    def _capture(self, graphs: Graphs, images: Tensor, labels: Tensor, size: int) -> None:
        """Capture the steps with batches of a shape, or give up all graphs."""
        images, labels = images.clone(), labels.clone()
        try:
            replay = graphs.capture(lambda: self._step(images, labels, size))
        except CaptureError as error:
            self._discard()
            self._graphs = None
            self._captured.clear()
            warn(f"--cuda_graph is True, but a step cannot be captured, and the run goes on without graphs: {error}")
            return
        self._captured[images.shape, size] = _CapturedStep(images, labels, replay)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong; the end of a capture that has failed raises an error of its own."""
    first = error.__context__ or error
    return str(first).partition("\n")[0] or type(first).__name__
