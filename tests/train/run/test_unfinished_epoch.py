"""Checkpoints inside an epoch: what each process goes on with, and what somebody has changed in them."""

import math

import pytest
import torch

from tests.train.run.test_strange_checkpoints import (
    changed,
    make_content,
    make_network,
    make_stepper,
    put,
    remove,
    state_of,
)
from train.errors import UserError
from train.processes import ProcessGroup
from train.restore import processes_inside_epoch, restore
from train.run.checkpoint import Checkpoint, read_checkpoint
from train.run.unfinished_epoch import ProcessState, UnfinishedEpoch

SUMS = torch.tensor([[3.5, 1.0, 8.0], [2.25, 4.0, 7.0]], dtype=torch.float64)
TENSORS = ("unfinished", "processes", 0, "tensors")


def make_unfinished():
    """The epoch of a run in two processes after three steps."""
    network = make_network(4)
    stepper = make_stepper(network, fp16=True)
    (state,) = processes_inside_epoch(network, stepper)
    processes = []
    for rank, sums in enumerate(SUMS):
        mean = torch.full((4,), 0.5 + rank)
        own = {"1.running_mean": mean, "sums": sums, "batches": torch.tensor(3.0), "skipped": torch.tensor(1.0)}
        processes.append(ProcessState(state.tensors | own, state.random))
    return UnfinishedEpoch(3, 15, 0.05, 1.5, processes)


@pytest.fixture(scope="module")
def original():
    return make_content() | {"unfinished": make_unfinished().content()}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_go_on_with_their_own_or_with_those_of_the_main_process(size, original, tmp_path):
    path = tmp_path / "checkpoint.pt"
    changed(original, lambda content: None, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.position == "in epoch 3, after batch 3"
    total = torch.zeros(3, dtype=torch.float64)
    for rank in range(size):
        network = make_network(0)
        stepper = make_stepper(network, fp16=True)
        stepper.processes = ProcessGroup(rank, size)
        restore(network, stepper, checkpoint, tmp_path)
        mean = network[1].running_mean
        assert mean.tolist() == [0.5 + rank * (size == 2)] * 4
        assert (stepper.num_steps, stepper.num_images) == (3, 15)
        assert (stepper.metrics.batches, stepper.num_skipped()) == (3, 1)
        assert size != 2 or torch.equal(stepper.metrics.sums, SUMS[rank])
        total += stepper.metrics.sums
    assert torch.equal(total, SUMS.sum(0))


def test_before_the_first_epoch_is_finished_no_weights_are_chosen(original, tmp_path):
    changed(original, lambda content: content.update(rows=[], chosen={}), tmp_path / "checkpoint.pt")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (checkpoint.epoch, checkpoint.is_empty, checkpoint.position) == (0, False, "in epoch 1, after batch 3")
    network = make_network(0)
    restore(network, make_stepper(network, fp16=True), checkpoint, tmp_path)
    assert torch.equal(network[0].weight, original["network"]["0.weight"])
    assert checkpoint.chosen == {}
    assert Checkpoint().is_empty


REFUSED = {
    **{f"it is {value!r}": put(("unfinished",), value) for value in ("text", [], {}, 3, True)},
    **{
        f"{name} is {value!r}": put(("unfinished", name), value)
        for name in ("num_steps", "num_images")
        for value in (0, -1, 3.0, "3", True, None)
    },
    **{
        f"{name} is {value!r}": put(("unfinished", name), value)
        for name in ("learning_rate", "seconds")
        for value in (-1.0, math.nan, math.inf, 1, "x", None)
    },
    **{f"{name} is missing": remove("unfinished", name) for name in vars(make_unfinished())},
    **{f"the processes are {value!r}": put(("unfinished", "processes"), value) for value in ([], {}, "x", [1], [{}])},
    "the random states are a text": put(("unfinished", "processes", 1, "random"), "x"),
    "the tensors are a list": put(TENSORS, []),
    "a running mean is missing": remove(*TENSORS, "1.running_mean"),
    "a running mean is larger": put((*TENSORS, "1.running_mean"), torch.zeros(5)),
    "a running mean is NaN": put((*TENSORS, "1.running_mean"), torch.full((4,), math.nan)),
    "the sums are missing": remove(*TENSORS, "sums"),
    "the sums are in 32 bits": put((*TENSORS, "sums"), torch.zeros(3)),
    "the sums are infinite": put((*TENSORS, "sums"), torch.full((3,), math.inf, dtype=torch.float64)),
    "a tensor too many": put((*TENSORS, "more"), torch.zeros(1)),
    "a tensor without a name": put((*TENSORS, 1), torch.zeros(1)),
    "a weight too few": remove("network", "0.weight"),
    "the rows are missing": lambda content: content.update(rows=None),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=[*REFUSED])
def test_it_is_one_line_and_nothing_is_restored(change, original, tmp_path):
    path = tmp_path / "checkpoint.pt"
    changed(original, change, path)
    network = make_network(0)
    stepper = make_stepper(network, fp16=True)
    before = state_of(network, stepper)
    with pytest.raises(UserError) as refusal:
        restore(network, stepper, read_checkpoint(path), tmp_path)
    assert "\n" not in str(refusal.value)
    assert all(map(torch.equal, before, state_of(network, stepper)))
    assert (stepper.num_steps, float(stepper.metrics.sums.sum())) == (0, 0.0)
