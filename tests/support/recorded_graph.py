"""A stand-in for CUDA graphs on a CPU: the operations of a function, recorded one by one and done again in place.

As on a GPU, recording a function changes no tensor, repeats nothing of its Python, and fails where it would have to
wait for the device.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.cuda_graph import CaptureError

WAITING = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique",
    "aten::unique",
)


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def written_by(function, args, kwargs):
    """Tensors that an operation writes, according to its schema; that of batch norm does not name all of them."""
    arguments = function._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    names = [argument.name for argument in arguments if argument.alias_info and argument.alias_info.is_write]
    if "batch_norm" in function.name():
        names += ["running_mean", "running_var"]
    return tensors_in([given.get(name) for name in names])


def memory_of(tensor):
    return tensor.untyped_storage()._cdata


class Recorder(TorchDispatchMode):
    """Records all operations, and what they overwrite.

    Args:
        num_allowed: Operations after which one fails.
    """

    def __init__(self, num_allowed=None):
        super().__init__()
        self.num_allowed = num_allowed
        self.calls = []
        self.overwritten = {}  # by memory: a tensor's storage and its content before
        self.own = set()  # memory that was allocated here

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "profiler":  # which computes nothing
            return function(*args, **kwargs)
        if function.name().startswith(WAITING) or len(self.calls) == self.num_allowed:
            raise RuntimeError(f"{function.name()} is not permitted when stream is capturing\nsome further lines")
        for tensor in written_by(function, args, kwargs):
            memory, storage = memory_of(tensor), tensor.untyped_storage()
            if memory not in self.own and memory not in self.overwritten:
                self.overwritten[memory] = storage, storage.clone()
        result = function(*args, **kwargs)
        given = {memory_of(tensor) for tensor in tensors_in([args, kwargs])}
        self.own |= {memory_of(tensor) for tensor in tensors_in(result)} - given
        self.calls.append((function, args, kwargs, result))
        return result

    def undo(self):
        """Restore all that was there before."""
        for storage, before in self.overwritten.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self):
        """Do the operations again, with the same memory."""
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for new, recorded in zip(tensors_in(again), tensors_in(result), strict=True):
                if memory_of(new) != memory_of(recorded):
                    recorded.copy_(new)


class RecordedGraphs:
    """Records functions instead of capturing them.

    Args:
        num_allowed: Operations after which a recording fails; None for no limit.
    """

    def __init__(self, num_allowed=None):
        self.num_allowed = num_allowed
        self.warm_ups = 0
        self.captures = 0
        self.replays = 0
        self.num_operations = 0  # of the last recording

    def warm_up(self, function):
        self.warm_ups += 1
        function()

    def capture(self, function):
        self.captures += 1
        random_state, recorder = torch.get_rng_state(), Recorder(self.num_allowed)
        try:
            with recorder:
                function()
        except RuntimeError as error:
            raise CaptureError(str(error).partition("\n")[0]) from error
        finally:
            self.num_operations = len(recorder.calls)
            recorder.undo()
            torch.set_rng_state(random_state)

        def replay():
            self.replays += 1
            recorder.replay()

        return replay
