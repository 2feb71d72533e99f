"""Devices, seeds, and weights without wrapper."""

import pytest
import torch
from torch import nn

from models import densenet_bc
from train import runtime
from train.errors import UserError
from train.replicas import InPrecision, replicate, require_devices
from train.team import Team


def test_several_gpus_are_used_through_data_parallel_and_one_directly(monkeypatch):
    network = nn.Linear(2, 2)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert isinstance(replicate(network, gpu).training, InPrecision)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    replicas = replicate(network, gpu)
    assert isinstance(replicas.training, nn.DataParallel)
    assert replicas.training is replicas.evaluation
    assert replicas.training.module.network is replicas.network is network
    assert isinstance(replicate(network, torch.device("cpu")).training, InPrecision)


def test_what_several_gpus_and_none_cannot_do_is_refused(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    with pytest.raises(UserError, match="--sync_bn True works between processes on GPUs, but there is none"):
        require_devices(cpu, compile=False, sync_bn=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(UserError, match=r"--compile True works with one GPU for each process, .* sees 3: put torchrun"):
        require_devices(gpu, compile=True, sync_bn=False)
    require_devices(gpu, compile=False, sync_bn=True)
    require_devices(gpu, compile=True, sync_bn=True, team=Team(count=3))
    require_devices(cpu, compile=True, sync_bn=False)


class Among(Team):
    """A process that does not ask the others, but is told what the largest values are."""

    others = (0, 0)

    def largest(self, *values):
        return tuple(max(pair) for pair in zip(values, self.others, strict=True))


@pytest.mark.parametrize(
    ("gpus", "local_rank", "others", "lacking"), [(2, 2, (2, 0), 1), (2, 0, (2, 3), 3), (0, 0, (1, 0), 1)]
)
def test_a_machine_with_too_few_gpus_stops_all_processes(gpus, local_rank, others, lacking, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(Among, "others", others)
    with pytest.raises(UserError, match=f"torchrun has started {lacking} too many processes on a machine"):
        runtime.pick_device(Among(rank=5, count=6, local_rank=local_rank))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Among, "others", (2, 0))
    assert runtime.pick_device() == torch.device("cuda", 0)
    assert runtime.pick_device(Among(rank=5, count=6, local_rank=1)) == torch.device("cuda", 1)


def test_each_process_drops_other_values(monkeypatch):
    masks = []
    for rank in range(3):
        runtime.seed_epoch(1, 1, Team(rank, 3, rank))
        masks.append(tuple(nn.functional.dropout(torch.ones(100), 0.5).tolist()))
    runtime.seed_epoch(1, 1)
    assert len(set(masks)) == 3
    assert masks[0] == tuple(nn.functional.dropout(torch.ones(100), 0.5).tolist())


def test_initial_weights_are_a_function_of_the_seed():
    weights = []
    for seed in (1, 1, 2):
        torch.rand(len(weights))  # the global generator stands somewhere else each time
        runtime.seed_weights(seed)
        weights.append(densenet_bc(10, 2).classifier.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_dropout_is_a_function_of_seed_and_epoch():
    masks = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1), (1, 1)):
        runtime.seed_epoch(seed, epoch)
        mask = nn.functional.dropout(torch.ones(100), 0.5)
        assert torch.equal(masks.setdefault((seed, epoch), mask), mask)
    assert len({tuple(mask.tolist()) for mask in masks.values()}) == 3


def test_copied_weights_are_plain_and_independent():
    network = runtime.placed(densenet_bc(10, 2), torch.device("cpu"))
    assert network.features.conv0.weight.is_contiguous(memory_format=torch.channels_last)
    copy = runtime.copy_to_cpu(network.state_dict())
    before = copy["features.conv0.weight"].clone()
    with torch.no_grad():
        network.features.conv0.weight.add_(1)
    assert copy["features.conv0.weight"].is_contiguous()
    assert torch.equal(copy["features.conv0.weight"], before)


def test_drawn_seeds_differ_and_can_be_typed():
    seeds = {runtime.draw_seed() for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_peak_memory_of_a_process_is_a_number_of_megabytes():
    assert 50 < runtime.peak_memory(torch.device("cpu")) < 100_000
