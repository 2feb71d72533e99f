"""Training on a GPU that recomputes is the same, bit for bit."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.support.network_pairs import DROPPING, FORMATS, assert_same_bits, naive_and_checkpoint
from tests.support.tensor_measurements import random_images


@pytest.fixture
def deterministic_cuda(monkeypatch):
    """Choose cuDNN's repeatable algorithms, and the same ones each time: no benchmark picks them."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_cuda")
def test_data_parallel_on_all_gpus_is_the_same():
    naive, efficient = (nn.DataParallel(network.cuda()) for network in naive_and_checkpoint(growth_rate=12))
    images = random_images(side=16, images=8 * torch.cuda.device_count()).cuda()
    assert_same_bits(naive, efficient, images)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic_cuda")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_on_a_gpu_is_the_same(dtype, memory_format):
    networks = naive_and_checkpoint(growth_rate=12, **DROPPING)
    naive, efficient = (network.cuda().to(memory_format=memory_format) for network in networks)
    images = random_images(side=16, images=8).cuda().contiguous(memory_format=memory_format)
    precision = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    assert_same_bits(naive, efficient, images, precision=precision)
