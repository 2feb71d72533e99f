"""The feature buffer on a GPU."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.network_pairs import (
    FORMATS,
    KINDS,
    OF_ALL_KINDS,
    SMALL,
    assert_same_training,
    doubles,
    naive_and_buffer,
    relative_errors,
)
from tests.support.tensor_measurements import naive_and, random_images, train


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
