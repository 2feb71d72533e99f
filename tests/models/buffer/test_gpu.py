"""The feature buffer on a GPU: in float64 by operations of PyTorch, else by kernels."""

import copy
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.buffer.device import as_on_gpu
from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import (
    FORMATS,
    IMAGENET,
    KINDS,
    OF_ALL_KINDS,
    PLAIN,
    SMALL,
    assert_same_training,
    doubles,
    naive_and_buffer,
    relative_errors,
)
from tests.support.tensor_measurements import largest_difference, naive_and, random_images, train, unequal


@pytest.mark.gpu
@pytest.mark.parametrize("config", [*KINDS.values(), SMALL | {"drop_rate": 0.2}], ids=[*KINDS, "dropping in layers"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_training_on_a_gpu_is_the_same(memory_format, config):
    networks = naive_and_buffer(**(config | {"growth_rate": 12}))
    naive, buffer = (network.cuda().to(memory_format=memory_format) for network in networks)
    assert_same_training(naive, buffer, doubles(side=16).cuda().contiguous(memory_format=memory_format))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_errors_on_a_gpu_are_those_of_the_naive_network(dtype, memory_format):
    config = SMALL | {"growth_rate": 8}
    naive, buffer = (network.cuda().to(memory_format=memory_format) for network in naive_and("buffer", **config))
    images = random_images(side=16, images=8).cuda().contiguous(memory_format=memory_format)
    precision = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    (truth,) = train(copy.deepcopy(naive).double(), images.double(), steps=1)
    (expected,), (actual,) = (train(network, images, steps=1, precision=precision) for network in (naive, buffer))
    for kind in ("gradient of images", "gradient of features", "logits", "running"):
        assert relative_errors(actual, truth, kind) < 2 * relative_errors(expected, truth, kind)


@pytest.mark.gpu
def test_data_parallel_on_all_gpus_is_the_same():
    naive, buffer = (nn.DataParallel(network.cuda()) for network in naive_and_buffer(growth_rate=12))
    assert_same_training(naive, buffer, doubles(side=16, images=8 * torch.cuda.device_count()).cuda())


@pytest.fixture
def products_in(monkeypatch):
    """Set how products of float32 are computed; afterwards they are as before."""

    def set_precision(precision: str) -> None:
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)

    return set_precision


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [None, (7, 5)], ids=["of the device", "without fused products"])
@pytest.mark.parametrize("config", [SMALL, PLAIN, IMAGENET], ids=["bottlenecks", "plain", "imagenet"])
def test_kernels_err_no_more_than_operations_of_pytorch(config, capability, precision, products_in):
    products_in("tf32" if precision == "tf32" else "ieee")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    autocast = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    naive, buffer = (network.cuda() for network in naive_and("buffer", **(config | {"growth_rate": 12})))
    images = random_images(side=32, images=16).cuda()
    (truth,) = train(copy.deepcopy(naive).double(), images.double(), steps=1)
    with patch("models.buffer.kernels.choice.are_usable", return_value=False):
        (expected,) = train(copy.deepcopy(buffer), images, steps=1, precision=autocast)
    with nullcontext() if capability is None else as_on_gpu(capability):
        first, second = (train(copy.deepcopy(buffer), images, steps=1, precision=autocast)[0] for _ in range(2))
    assert unequal(first, second) == []
    for kind in ("gradient of images", "gradient of features", "logits", "running"):
        assert relative_errors(first, truth, kind) < 1.5 * relative_errors(expected, truth, kind) + 1e-7, kind


@pytest.mark.gpu
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_that_is_captured_in_graphs_trains_as_before(dtype, strategy, config):
    eager, network = (naive_and(strategy, **config)[1].cuda() for _ in range(2))
    images = random_images(side=16).cuda()
    autocast = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)
    with autocast():
        captured = torch.cuda.make_graphed_callables(network, (torch.zeros_like(images),))
    captured.load_state_dict(eager.state_dict())  # in place: capturing has changed running statistics
    steps = (train(one, images, precision=autocast, input_gradient=False) for one in (eager, captured))
    for expected, actual in zip(*steps, strict=True):
        assert largest_difference(actual, expected) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_network_on_the_second_gpu_is_the_same():
    config = SMALL | {"growth_rate": 12}
    (expected,), (actual,) = (
        train(naive_and("buffer", **config)[1].to(device), random_images(side=16).to(device), steps=1)
        for device in ("cuda:0", "cuda:1")
    )
    assert torch.cuda.current_device() == 0
    assert unequal(on_cpu(actual), on_cpu(expected)) == []


def on_cpu(record: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in record.items()}


@pytest.mark.gpu
def test_data_parallel_by_kernels_errs_no_more_than_plain_modules(products_in):
    products_in("ieee")
    naive, buffer = (network.cuda() for network in naive_and("buffer", **(SMALL | {"growth_rate": 12})))
    images = random_images(side=16, images=8 * torch.cuda.device_count()).cuda()
    exact = copy.deepcopy(naive).double()
    (truth,) = train(nn.DataParallel(exact), images.double(), steps=1)
    (expected,), (actual,) = (train(nn.DataParallel(network), images, steps=1) for network in (naive, buffer))
    for kind in ("gradient of images", "gradient of module.features", "logits", "running"):
        assert relative_errors(actual, truth, kind) < 2 * relative_errors(expected, truth, kind) + 1e-7, kind


@pytest.mark.gpu
@OF_ALL_KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_on_a_gpu_never_waits_for_it(dtype, config):
    network, images = naive_and("buffer", **config)[1].cuda(), random_images(side=16).cuda()
    labels = torch.arange(4, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
