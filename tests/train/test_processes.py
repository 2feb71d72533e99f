"""Several processes train as one does."""

import pytest
import torch

from tests.support import process_group_program
from tests.support.application import ROOT
from tests.support.torchrun import run_processes
from train.errors import LostProcess
from train.messages import connected
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.signals import MOST_CHECKS

COUNTS = (2, 3)
PROGRAM = ROOT / "tests" / "support" / "process_group_program.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of each process, for groups of 2 and of 3 processes, by the size of the group."""
    found = {}
    for count in COUNTS:
        folder = tmp_path_factory.mktemp("processes")
        done = run_processes(count, str(folder), folder=folder, program=PROGRAM)
        assert done.returncode == 0, done.stderr
        paths = [folder / f"{count}-{rank}.pt" for rank in range(count)]
        found[count] = [torch.load(path, weights_only=True) for path in paths]
    return found


def assert_close(ones, others):
    assert ones.keys() == others.keys()
    for name, one in ones.items():
        torch.testing.assert_close(
            one, others[name], rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["frozen", "parts"])
def test_losses_errors_and_weights_are_those_of_one_process(results, count, kind):
    metrics, weights = process_group_program.train(SINGLE_PROCESS)
    for of_process, its_weights in (result[kind] for result in results[count]):
        assert of_process == pytest.approx(metrics, rel=1e-10)
        assert_close(its_weights, weights)


@pytest.mark.parametrize("count", COUNTS)
def test_norm_layers_keep_the_statistics_of_the_first_process(results, count):
    (_, first), *others = (result["moving"] for result in results[count])
    for _, weights in others:
        assert_close(weights, first)
    _, alone = process_group_program.train(SINGLE_PROCESS, epochs=1, is_frozen=False)
    assert any(not torch.allclose(alone[name], first[name]) for name in alone if name.endswith("running_mean"))


@pytest.mark.parametrize("count", COUNTS)
def test_processes_share_running_statistics_after_an_epoch_and_not_in_each_step(results, count):
    (of_first, *_), *_ = (result["statistics"] for result in results[count])
    for before, after, alone in (result["statistics"] for result in results[count]):
        for own, shared, expected, first in zip(before, after, alone, of_first, strict=True):
            assert torch.equal(own, expected)
            assert torch.equal(shared, first)
    last = results[count][-1]["statistics"][0]
    assert not all(map(torch.equal, last, of_first))


@pytest.mark.parametrize("count", COUNTS)
def test_a_bad_loss_in_one_process_stops_all_before_that_step(results, count):
    ((batch, taken),) = {result["failed"][:2] for result in results[count]}
    assert batch == 3
    assert 3 <= taken <= 5
    first, *others = (result["failed"][2] for result in results[count])
    assert all(weight.isfinite().all() for weight in first.values())
    for weights in others:
        assert_close(weights, first)


@pytest.mark.parametrize("count", COUNTS)
def test_a_signal_to_one_process_ends_the_evaluation_of_all_after_the_same_batch(results, count):
    ((said, exit_code, batch),) = {result["stopped"] for result in results[count]}
    assert (said, exit_code) == (f"stopped by SIGTERM in validation, batch {batch}", 143)
    assert 2 <= batch <= 2 + MOST_CHECKS


def test_one_process_of_each_machine_does_work_before_the_others_there(results):
    assert [result["seen"] for result in results[3]] == [[], ["0"], ["0", "1"]]


def test_what_the_first_one_raises_is_not_hidden_by_the_end_of_others(monkeypatch):
    def lost(content):
        raise LostProcess("another process has ended")

    monkeypatch.setattr("train.messages.broadcast", lost)
    with pytest.raises(ValueError, match="no number"):
        ProcessGroup(world_size=2).on_main(int, "no number")


def test_connections_are_closed_together_or_not_at_all(monkeypatch):
    done = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: done.append("opened"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("closed"))
    with connected(local_rank=0):
        pass
    with pytest.raises(ZeroDivisionError), connected(local_rank=0):
        raise ZeroDivisionError
    assert done == ["opened", "closed", "opened"]


@pytest.mark.parametrize("count", COUNTS)
def test_all_learn_what_the_first_one_did(results, count):
    for rank, (heard, ended, largest, agrees) in enumerate(result["heard"] for result in results[count]):
        assert heard["rank"] == 0
        assert agrees == (True, False)
        assert torch.equal(heard["tensor"], torch.arange(3))
        assert ended == ("ValueError" if rank == 0 else 1)
        assert largest == (count - 1, 0)
