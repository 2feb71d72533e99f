"""Devices, seeds, and weights without wrapper."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models import densenet_bc
from tests.support.application import SMALL, run_here
from train import runtime
from train.errors import UserError
from train.processes import ProcessGroup, launcher_warning
from train.replicas import InPrecision, replicate, require_devices


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
    with pytest.raises(
        UserError, match=r"--compile True works with one GPU for each process, .* sees 3: start it by torchrun"
    ):
        require_devices(gpu, compile=True, sync_bn=False)
    require_devices(gpu, compile=False, sync_bn=True)
    require_devices(gpu, compile=True, sync_bn=True, processes=ProcessGroup(world_size=3))
    require_devices(cpu, compile=True, sync_bn=False)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp32"])
def test_float32_is_ieee_unless_tf32_is_asked_for(precision):
    runtime.use_precision(precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")  # compilers and exporters read these
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == (precision == "tf32")  # kernels read this
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@pytest.mark.parametrize(("processes", "supported"), [(1, True), (1, False), (2, True)])
def test_tf32_needs_gpus_that_have_it_in_all_processes(processes, supported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: supported)
    monkeypatch.setattr(Among, "others", (1,))
    group = Among(world_size=2) if processes == 2 else ProcessGroup()  # the other process lacks it
    allowed = nullcontext() if supported and processes == 1 else pytest.raises(UserError, match=r"capability 8\.0")
    with allowed:
        require_devices(torch.device("cuda", 0), precision="tf32", processes=group)
    require_devices(torch.device("cpu"), precision="fp32")


def test_a_graph_is_of_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(UserError, match="--cuda_graph True works with one GPU, but this process sees 3: let CUDA_"):
        require_devices(torch.device("cuda", 0), cuda_graph=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    require_devices(torch.device("cuda", 0), cuda_graph=True)


@pytest.mark.gpu
def test_convolutions_on_a_gpu_are_in_the_precision():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator, dtype=torch.float64).cuda() for _ in range(2))
    errors = {}
    for precision in ("fp32", "tf32"):
        runtime.use_precision(precision)
        result = nn.functional.conv2d(x.float()[..., None, None], w.T.float()[..., None, None])
        errors[precision] = (result.double()[..., 0, 0] - x @ w).abs().max()
    assert errors["fp32"] < 1e-4
    assert errors["tf32"] > 1e-3


class Among(ProcessGroup):
    """A process that does not ask the others, but knows their largest values."""

    others = (0, 0)

    def all_reduce_max(self, *values):
        return tuple(max(pair) for pair in zip(values, self.others, strict=True))


@pytest.mark.parametrize(
    ("gpus", "local_rank", "others", "missing"), [(2, 2, (2, 0), 1), (2, 0, (2, 3), 3), (0, 0, (1, 0), 1)]
)
def test_a_machine_with_too_few_gpus_stops_all_processes(gpus, local_rank, others, missing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(Among, "others", others)
    with pytest.raises(UserError, match=f"torchrun has started {missing} too many processes on a machine"):
        runtime.pick_device(Among(rank=5, world_size=6, local_rank=local_rank))


@pytest.mark.parametrize(
    ("visible", "number"),
    [("", 0), ("0", 1), ("0,1", 2), (" 2 , 3", 2), ("-1", 0), ("0,-1,2", 1), ("NoDevFiles", 0), ("GPU-89,MIG-3f", 2)],
)
def test_devices_are_named_up_to_the_first_that_cannot_be_one(visible, number):
    """As CUDA reads it: an invalid entry hides itself and all that follow."""
    assert runtime.num_named(visible) == number


@pytest.mark.parametrize(
    ("visible", "gpus", "line"),
    [
        ("0", 0, "warning: CUDA_VISIBLE_DEVICES is '0', but PyTorch finds no GPU and works on the CPU; "),
        ("0,1,2", 2, "warning: CUDA_VISIBLE_DEVICES is '0,1,2', but PyTorch finds 2 GPUs\n"),
        ("0,1", 2, ""),
        ("", 0, ""),
        ("-1", 0, ""),
        (None, 0, ""),
    ],
)
def test_devices_that_were_named_and_are_not_there_are_said(visible, gpus, line, monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert runtime.pick_device().type == ("cuda" if gpus else "cpu")
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1 if line else 0)
    assert error.startswith(line)


def test_a_pytorch_without_cuda_is_named_as_the_reason(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in ((None, "this PyTorch was built without CUDA\n"), ("13.0", "their driver\n")):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.version, "hip", None)
        runtime.pick_device()
        assert capsys.readouterr().err.endswith(reason)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"WORLD_SIZE": "4", "RANK": "1"}, "WORLD_SIZE is 4 and RANK is 1, but "),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "SLURM_NTASKS is 2, but "),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE is 8, but "),
        ({"PMI_SIZE": "3"}, "PMI_SIZE is 3, but "),
        ({"RANK": "2"}, "RANK is 2, but "),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"SLURM_NTASKS": "1"}, None),
        ({"WORLD_SIZE": "many"}, None),
        ({}, None),
        ({"WORLD_SIZE": "4", "RANK": "1", "TORCHELASTIC_RUN_ID": "none"}, None),
    ],
)
def test_other_launchers_of_several_processes_are_named(environment, found):
    line = launcher_warning(environment)
    assert line is None if found is None else line.startswith(found)


def test_a_run_that_trains_alone_among_others_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert run_here(*SMALL, "--n_epochs=1", "--limit_batches=1", f"--save={tmp_path / 'run'}") == 0
    error = capsys.readouterr().err
    assert re.fullmatch(r"warning: SLURM_NTASKS is 2, but .* this one trains alone; start torchrun once .*\n", error)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Among, "others", (2, 0))
    assert runtime.pick_device() == torch.device("cuda", 0)
    assert runtime.pick_device(Among(rank=5, world_size=6, local_rank=1)) == torch.device("cuda", 1)


def test_each_process_drops_other_values(monkeypatch):
    masks = []
    for rank in range(3):
        runtime.seed_epoch(1, 1, ProcessGroup(rank, 3, rank))
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


def drop():
    return tuple(nn.functional.dropout(torch.ones(100), 0.5).tolist())


def test_dropout_goes_on_where_its_random_numbers_were_saved():
    runtime.seed_epoch(1, 1)
    drop()
    states = runtime.random_states()
    expected = drop(), drop()
    runtime.seed_epoch(2, 2)
    assert runtime.set_random_states(states)
    assert (drop(), drop()) == expected


def test_states_of_other_devices_are_not_used(monkeypatch):
    """None at all, those of a CPU and a GPU, that of a GPU alone, and values that are no state."""
    (of_cpu,), of_gpu = runtime.random_states(), torch.zeros(16, dtype=torch.uint8)
    for states in ([], [of_cpu, of_gpu], [of_gpu], ["x"], [torch.zeros_like(of_cpu)], [of_cpu.float()]):
        assert not runtime.set_random_states(states)
    set_to = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: of_gpu + device)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: set_to.update({device: int(state[0])}))
    assert not runtime.set_random_states([of_cpu])
    assert runtime.set_random_states(runtime.random_states())
    assert set_to == {0: 0, 1: 1}


def test_new_random_numbers_inside_an_epoch_are_others_than_at_its_beginning():
    masks = {}
    for num_steps in (0, 1, 2, 1):
        runtime.seed_epoch(1, 1, num_steps=num_steps)
        mask = drop()
        assert masks.setdefault(num_steps, mask) == mask
    assert len(set(masks.values())) == 3


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
