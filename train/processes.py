"""The processes of a run: a single one, or those that torchrun has started.

All of them run the same program with the same values. Work for the main process only (write, print, download) is passed
to `ProcessGroup.on_main`, so that the others learn how it went.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from train.errors import EndedElsewhere, LostProcess
from train.program_name import PYTHON_WORDS, TORCHRUN_WORDS

if TYPE_CHECKING:  # torch takes seconds to import, and a process that is alone sends no messages
    from torch import Tensor

Result = TypeVar("Result")
LAUNCHED = "TORCHELASTIC_RUN_ID"  # in the environment of processes that torchrun has started
# Number of processes, as srun, mpirun (Open MPI, MPICH, MVAPICH) and other launchers of PyTorch give it.
SIZES_OF_OTHERS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run.

    Attributes:
        rank: Number of this process, from 0, which is the main process.
        world_size: Number of all processes.
        local_rank: Number of this process among those on its machine, from 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which prints and writes."""
        return self.rank == 0

    def on_main(self, work: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
        """Let the main process do some work, and return its result in all processes. The result must be picklable.

        Raises:
            BaseException: In the main process, whatever the work raises.
            EndedElsewhere: In the other processes, if the work has raised anything.
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
        """Let the main process do some work and return its result there; return None in the others."""
        results: list[Result] = []
        self.on_main(lambda: results.append(work(*arguments)))
        return results[0] if results else None

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Let each process do some work, and return its own result.

        The main process goes first, then one process of each further machine, then the rest, since they may share a
        folder.
        """
        results: list[Result] = []
        self.on_main(lambda: results.append(work()))
        if not results and self.local_rank == 0:
            results.append(work())
        self.all_reduce_max(0)  # all wait here
        return results[0] if results else work()

    def all_reduce_max(self, *values: int) -> tuple[int, ...]:
        """Return the largest value over all processes, for each of some numbers. GPUs are not waited for."""
        return values if self.world_size == 1 else self._messages.all_reduce_max(values)

    def all_equal(self, value: int) -> bool:
        """Return whether a number of up to 62 bits is the same in all processes."""
        most, negative_of_least = self.all_reduce_max(value, -value)
        return most == -negative_of_least

    def all_reduce_sum(self, tensor: "Tensor") -> None:
        """Replace a tensor by its sum over all processes, on its device."""
        if self.world_size > 1:
            self._messages.reduce(tensor, self._messages.dist.ReduceOp.SUM)

    def all_reduce_min(self, tensor: "Tensor") -> None:
        """Replace a tensor by its minimum over all processes, value by value, on its device."""
        if self.world_size > 1:
            self._messages.reduce(tensor, self._messages.dist.ReduceOp.MIN)

    def broadcast(self, tensors: Iterable["Tensor"]) -> None:
        """Overwrite tensors of one device by those of the main process."""
        if self.world_size > 1:
            self._messages.broadcast_tensors(tensors)

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all processes in the main process, and an empty list in the others.

        Args:
            value: Must be picklable.
        """
        return [value] if self.world_size == 1 else self._messages.gather(value, self.world_size)

    def detect_lost_process(self) -> AbstractContextManager[None]:
        """Raise `LostProcess` in place of the error with which PyTorch says that another process has ended.

        A signal that came while PyTorch was waiting for that process is raised at the end of this context.
        """
        return nullcontext() if self.world_size == 1 else self._messages.detect_lost_process()

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
    """Return whether torchrun has started this process."""
    return LAUNCHED in os.environ


def launcher_warning(environment: Mapping[str, str]) -> str | None:
    """Warn that this process trains alone although another launcher than torchrun was asked for several processes.

    Args:
        environment: The environment of the process.

    Returns:
        The line, or None if there is nothing to warn of.
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
        f"start torchrun once on each machine, as in: torchrun --nproc_per_node=<GPUs> {' '.join(TORCHRUN_WORDS)} ..."
    )


def current_group() -> ProcessGroup:
    """Return the processes that torchrun has started for this run, or a single process."""
    if not is_launched():
        return SINGLE_PROCESS
    return ProcessGroup(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def starting_words() -> list[str]:
    """Return the words of a command line that starts this program in as many processes.

    How the machines of a run find each other is not known here; "..." stands for those flags.
    """
    if not is_launched():
        return [*PYTHON_WORDS]
    machines = int(os.environ["GROUP_WORLD_SIZE"])
    several = [f"--nnodes={machines}", "..."] if machines > 1 else []
    return ["torchrun", *several, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *TORCHRUN_WORDS]


def connected() -> AbstractContextManager[None]:
    """Connect the processes of a run, so that they can exchange messages; a single process needs no connection."""
    if not is_launched():
        return nullcontext()
    from train import messages

    return messages.connected(local_rank=current_group().local_rank)
