"""The processes of a run: one, or those that torchrun has started.

All go through the same program with the same values. What only the first one may do (write, print, download) it does
through `ProcessGroup.on_main`, so that the others learn how it went.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from train.errors import EndedElsewhere, LostProcess

if TYPE_CHECKING:  # torch takes seconds to import, and a process that is alone sends no messages
    from torch import Tensor

Result = TypeVar("Result")
LAUNCHED = "TORCHELASTIC_RUN_ID"  # in the environment of processes that torchrun has started
# Number of processes, as srun, mpirun (Open MPI, MPICH, MVAPICH) and other launchers of PyTorch tell it.
SIZES_OF_OTHERS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run.

    Attributes:
        rank: Of this process, from 0.
        world_size: Number of all processes.
        local_rank: Of this process among those on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def on_main(self, work: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
        """Let the first process do something, and return to all what it returns, which can be pickled.

        Raises:
            BaseException: In the first process, what the work raises.
            EndedElsewhere: In the others, if it has raised something.
        """
        if self.world_size == 1:
            return work(*arguments, **keywords)
        if not self.is_main:
            return self._hear()
        try:
            result = work(*arguments, **keywords)
        except BaseException as error:
            with suppress(LostProcess):  # what the work raised says more
                self._tell(None, getattr(error, "exit_code", getattr(error, "code", 1)))
            raise
        self._tell(result, None)
        return result

    def on_main_only(self, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Let the first process do something and keep what it returns; the others get None."""
        results: list[Result] = []
        self.on_main(lambda: results.append(work(*arguments)))
        return results[0] if results else None

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Let all processes do something, and return to each its own result.

        The first one does it before all others, and on each further machine one does it before the rest, since they
        may have a folder in common.
        """
        results = []
        self.on_main(lambda: results.append(work()))
        if not results and self.local_rank == 0:
            results.append(work())
        self.all_reduce_max(0)  # all wait here
        return results[0] if results else work()

    def all_reduce_max(self, *values: int) -> tuple[int, ...]:
        """The largest of all processes' values, one by one. GPUs are not waited for."""
        return values if self.world_size == 1 else self._messages.all_reduce_max(values)

    def all_equal(self, value: int) -> bool:
        """Whether a number of up to 62 bits is the same in all processes."""
        most, negative_of_least = self.all_reduce_max(value, -value)
        return most == -negative_of_least

    def all_reduce_sum(self, tensor: "Tensor") -> None:
        """Replace a tensor by the sum of all processes' tensors, on its device."""
        if self.world_size > 1:
            self._messages.reduce(tensor, self._messages.dist.ReduceOp.SUM)

    def all_reduce_min(self, tensor: "Tensor") -> None:
        """Replace a tensor by the smallest values of all processes' tensors, on its device."""
        if self.world_size > 1:
            self._messages.reduce(tensor, self._messages.dist.ReduceOp.MIN)

    def broadcast(self, tensors: Iterable["Tensor"]) -> None:
        """Overwrite tensors of one device by those of the first process."""
        if self.world_size > 1:
            self._messages.broadcast_tensors(tensors)

    def watched(self) -> AbstractContextManager[None]:
        """Let `LostProcess` be raised where another process has ended, in whatever PyTorch does meanwhile.

        A signal that came while PyTorch was waiting for that process is raised at the end of this context.
        """
        return nullcontext() if self.world_size == 1 else self._messages.others_may_be_lost()

    @property
    def _messages(self) -> Any:
        from train import messages

        return messages

    def _tell(self, result: Any, exit_code: int | None) -> None:
        self._messages.broadcast([result, exit_code])

    def _hear(self) -> Any:
        result, exit_code = self._messages.broadcast([None, None])
        if exit_code is not None:
            raise EndedElsewhere(exit_code)
        return result


SINGLE_PROCESS = ProcessGroup()


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return LAUNCHED in os.environ


def launcher_warning(environment: Mapping[str, str]) -> str | None:
    """Say that this process trains alone although a launcher other than torchrun has been asked for several.

    Args:
        environment: Of the process.

    Returns:
        The line, or None if there is nothing to say.
    """
    if LAUNCHED in environment:
        return None
    if_alone = dict.fromkeys(SIZES_OF_OTHERS, 1) | {"RANK": 0}
    numbers = {name: environment.get(name, "") for name in if_alone}
    found = [f"{name} is {text}" for name, text in numbers.items() if text.isdecimal() and int(text) > if_alone[name]]
    if not found:
        return None
    return (
        f"{' and '.join(found)}, but processes share a run only if torchrun starts them: this one trains alone; "
        "start torchrun once on each machine, as in: torchrun --nproc_per_node=<GPUs> demo.py ..."
    )


def current_group() -> ProcessGroup:
    """The processes that torchrun has started for this run, or a single process."""
    if not is_launched():
        return SINGLE_PROCESS
    return ProcessGroup(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def launcher() -> list[str]:
    """What a user types before the program's name to start as many processes.

    Where the machines of a run find each other is not known here; "..." stands for it.
    """
    if not is_launched():
        return ["python"]
    machines = int(os.environ["GROUP_WORLD_SIZE"])
    several = [f"--nnodes={machines}", "..."] if machines > 1 else []
    return ["torchrun", *several, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"]


def connected() -> AbstractContextManager[None]:
    """Connect the processes of a processes, which they need before they use it; one that is alone needs nothing."""
    if not is_launched():
        return nullcontext()
    from train import messages

    return messages.connected(local_rank=current_group().local_rank)
