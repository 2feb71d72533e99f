"""How far a run is inside an epoch: the part of checkpoint.pt that one after an epoch does not have."""

import math
from dataclasses import dataclass, fields
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Self

from train.processes import ProcessGroup

if TYPE_CHECKING:  # takes seconds to import
    from torch import Tensor

SUMS = "sums"  # of losses, wrong answers and images: the tensor that differs between processes and has to be added


@dataclass(frozen=True)
class ProcessState:
    """What the steps of an epoch have left in one process, beside what all processes have in common.

    Attributes:
        tensors: Running statistics of its copy of the network, and sums over its images, by name.
        random: States of the random numbers on its devices; empty if it has to begin new ones.
    """

    tensors: dict[str, "Tensor"]
    random: list["Tensor"]


@dataclass(frozen=True)
class UnfinishedEpoch:
    """An epoch of which some steps are taken, possibly all of them, and which is not validated yet.

    Attributes:
        num_steps: Steps that are taken, 1 or more.
        num_images: Images that were in them, in all processes.
        learning_rate: Learning rate of the epoch, from its first to its last step.
        seconds: Duration of these steps.
        processes: What the steps have left in each process.
    """

    num_steps: int
    num_images: int
    learning_rate: float
    seconds: float
    processes: list[ProcessState]

    @classmethod
    def from_content(cls, content: Any) -> Self:
        """Return the epoch that `content` has put into a file.

        Names and values of tensors are not checked.

        Raises:
            KeyError: If a value is missing.
            TypeError: If a value has another type.
            ValueError: If a value is out of range.
        """
        values = _values(cls, content)
        for name in ("num_steps", "num_images"):
            if type(values[name]) is not int or values[name] < 1:
                raise ValueError(f"its {name} is {short_repr(values[name])}")
        for name in ("learning_rate", "seconds"):
            if type(values[name]) is not float or not 0 <= values[name] < math.inf:
                raise ValueError(f"its {name} is {short_repr(values[name])}")
        processes = values["processes"]
        if not isinstance(processes, list) or not processes:
            raise ValueError("its unfinished epoch was trained by no process")
        return cls(**(values | {"processes": [_process_state(process) for process in processes]}))

    def content(self) -> dict[str, Any]:
        """Return plain values and tensors for a file."""
        return vars(self) | {"processes": [vars(process) for process in self.processes]}

    def of(self, processes: ProcessGroup) -> ProcessState:
        """Return what a process goes on with.

        With as many processes as before, each goes on with its own. In another number, all go on with the running
        statistics of the main process and with new random numbers, and the main process with the sums of all.

        Args:
            processes: The process, among those that go on.
        """
        if len(self.processes) == processes.world_size:
            return self.processes[processes.rank]
        every = [process.tensors[SUMS] for process in self.processes]
        sums = sum(every[1:], start=every[0]) if processes.is_main else 0 * every[0]
        return ProcessState({**self.processes[0].tensors, SUMS: sums}, [])


def _process_state(content: Any) -> ProcessState:
    values = _values(ProcessState, content)
    for name, kind in (("tensors", dict), ("random", list)):
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} of a process is of type {type(values[name]).__name__}")
    return ProcessState(**values)


def _values(kind: type, content: Any) -> dict[str, Any]:
    """Return the values of the fields of a dataclass."""
    if not isinstance(content, dict):
        raise TypeError(f"its unfinished epoch is of type {type(content).__name__}, and not a dict")
    return {field.name: content[field.name] for field in fields(kind)}
