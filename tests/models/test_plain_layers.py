"""Networks without bottlenecks, against what plain functions and a hand make of the same numbers."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import STRATEGIES, DenseNet, densenet_plain
from models.layers import PlainLayer
from tests.support.tensor_measurements import naive_and, random_images, record, train

CONFIG = {"growth_rate": 4, "block_config": (3, 2, 2), "compression": 1, "num_init_features": 8, "bn_size": None}


def test_a_layer_adds_up_what_norm_and_relu_leave_of_all_neighbours():
    layer = PlainLayer(2, growth_rate=1, drop_rate=0, checkpoint=False).double()
    torch.nn.init.ones_(layer.conv1.weight)
    # The first map has mean 2 and variance 8 / 6. Above the mean are two values of 4 - 2 = 2, in opposite corners.
    # The second map is constant.
    maps = torch.tensor([[[[4.0, 2, 1], [1, 0, 4]], [[7, 7, 7], [7, 7, 7]]]], dtype=torch.float64)
    value = 2 / (14 / 6 + 1e-5) ** 0.5
    expected = torch.tensor([[[[1.0, 2, 1], [1, 2, 1]]]], dtype=torch.float64) * value
    torch.testing.assert_close(layer([maps[:, :1], maps[:, 1:]]), expected, rtol=1e-12, atol=1e-12)


def normalise(maps: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm and ReLU by the definition, with the statistics of the batch."""
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    gamma, beta = (state[f"{name}.{kind}"].view(-1, 1, 1) for kind in ("weight", "bias"))
    return ((maps - mean) / (variance + 1e-5).sqrt() * gamma + beta).clamp(min=0)


def logits_by_functions(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Find blocks, layers and transitions by the names of a state alone."""
    maps = F.conv2d(images, state["features.conv0.weight"], padding=1)
    for block in count(1):
        for layer in count(1):
            name = f"features.denseblock{block}.denselayer{layer}"
            if f"{name}.conv1.weight" not in state:
                break
            new = F.conv2d(normalise(maps, state, f"{name}.norm1"), state[f"{name}.conv1.weight"], padding=1)
            maps = torch.cat([maps, new], 1)
        name = f"features.transition{block}"
        if f"{name}.conv.weight" not in state:
            break
        weight = state[f"{name}.conv.weight"][:, :, 0, 0]
        maps = torch.einsum("oc, nchw -> nohw", weight, normalise(maps, state, f"{name}.norm"))
        maps = maps.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)
    averages = normalise(maps, state, "features.norm_final").mean((2, 3))
    return averages @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_logits_and_gradients_are_those_of_plain_functions(strategy):
    network = naive_and(strategy, **CONFIG)[1].double()
    images = random_images().double()
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in network.named_parameters()}
    expected = logits_by_functions(images, state)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    logits = network(images)
    (logits * weights).sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_running_statistics_move_once_a_step_to_those_of_the_maps(strategy):
    network = naive_and(strategy, **CONFIG)[1].double()
    images = random_images().double()
    maps = network.features.conv0(images)
    norm = network.features.denseblock1.denselayer1.norm1
    before = record(norm)
    train(network, images, steps=1)
    mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=1)
    torch.testing.assert_close(norm.running_mean, 0.9 * before["running_mean"] + 0.1 * mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, 0.9 * before["running_var"] + 0.1 * variance, rtol=1e-12, atol=1e-12)
    norms = [module for name, module in network.named_modules() if name.rpartition(".")[2].startswith("norm")]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1] * (7 + 2 + 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_builder_makes_the_network_of_the_paper(strategy):
    built = densenet_plain(13, 4, num_classes=5, efficient=strategy)
    config = {"growth_rate": 4, "block_config": (3, 3, 3), "num_init_features": 16, "num_classes": 5}
    written_out = DenseNet(**config, compression=1, bn_size=None, efficient=strategy)
    shapes = [[(name, tensor.shape) for name, tensor in n.state_dict().items()] for n in (built, written_out)]
    assert shapes[0] == shapes[1]
    assert built.strategy == written_out.strategy == strategy
    assert built(random_images()).shape == (4, 5)
