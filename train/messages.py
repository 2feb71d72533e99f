"""Messages between the processes of a run. Only `processes` calls these, and only where there are several."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.errors import LostProcess

PATIENCE = timedelta(hours=2)  # with a first process that downloads; torchrun ends them all when one ends


@contextmanager
def connected(*, local_rank: int) -> Iterator[None]:
    """Connect with the other processes: gloo for tensors of the CPU, nccl for those of GPUs.

    After an error the connections stay, until the process ends: to close those of nccl, all processes have to take
    part, and the others may be waiting for something else.
    """
    backends = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(min(local_rank, torch.cuda.device_count() - 1))
        backends += ",cuda:nccl"
    dist.init_process_group(backends, timeout=PATIENCE)
    yield
    dist.destroy_process_group()


def is_loss_of_process(error: BaseException) -> bool:
    """Whether an error of PyTorch says that another process does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def others_may_be_lost() -> Iterator[None]:
    """Turn what PyTorch raises where another process does not answer into `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        if is_loss_of_process(error):
            raise LostProcess("another process of the run has ended or does not answer") from error
        raise


def broadcast(content: list[Any]) -> list[Any]:
    """Return the first process's list, which is as long as everyone's."""
    with others_may_be_lost():
        dist.broadcast_object_list(content, src=0)
    return content


def reduce(tensor: Tensor, operation: dist.ReduceOp) -> None:
    """Replace a tensor by what an operation makes of those of all processes, on its device."""
    with others_may_be_lost():
        dist.all_reduce(tensor, op=operation)


def all_reduce_max(values: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of all processes' values, one by one. GPUs are not waited for."""
    numbers = torch.tensor(values)
    reduce(numbers, dist.ReduceOp.MAX)
    return tuple(numbers.tolist())


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors of one device by those of the first process, with one message for each type."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        message = torch.cat([tensor.flatten() for tensor in group])
        with others_may_be_lost():
            dist.broadcast(message, src=0)
        for tensor, part in zip(group, message.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
