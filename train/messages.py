"""Messages between the processes of a run. Only `processes` calls these, and only where there are several."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.errors import LostProcess

PATIENCE = timedelta(hours=2)  # with a main process that downloads; torchrun ends them all when one ends


@contextmanager
def connected(*, local_rank: int) -> Iterator[None]:
    """Connect to the other processes, by gloo for tensors on the CPU and by nccl for tensors on GPUs.

    After an error the connections stay open until the process ends: all processes have to take part in closing those
    of nccl, and the others may be waiting for something else.
    """
    backends = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(min(local_rank, torch.cuda.device_count() - 1))
        backends += ",cuda:nccl"
    dist.init_process_group(backends, timeout=PATIENCE)
    yield
    dist.destroy_process_group()


def is_loss_of_process(error: BaseException) -> bool:
    """Return whether an error of PyTorch means that another process does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def detect_lost_process() -> Iterator[None]:
    """Raise `LostProcess` in place of the error with which PyTorch says that another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        if is_loss_of_process(error):
            raise LostProcess("another process of the run has ended or does not answer") from error
        raise


def broadcast(content: list[Any]) -> list[Any]:
    """Return the list of the main process. The lists of all processes have the same length."""
    with detect_lost_process():
        dist.broadcast_object_list(content, src=0)
    return content


def gather(value: Any, world_size: int) -> list[Any]:
    """Return the values of all processes in the main process, and an empty list in the others."""
    values = [None] * world_size if dist.get_rank() == 0 else []
    with detect_lost_process():
        dist.gather_object(value, values or None, dst=0)
    return values


def reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Replace a tensor by its reduction over all processes, on its device."""
    with detect_lost_process():
        dist.all_reduce(tensor, op=operation)


def all_reduce_max(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest value over all processes, for each of some numbers. GPUs are not waited for."""
    numbers = torch.tensor(values)
    reduce(numbers, dist.ReduceOp.MAX)
    return tuple(numbers.tolist())


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors of one device by those of the main process, with one message for each dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        message = torch.cat([tensor.flatten() for tensor in group])
        with detect_lost_process():
            dist.broadcast(message, src=0)
        for tensor, part in zip(group, message.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
