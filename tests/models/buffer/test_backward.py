"""Backward passes over one graph and over several, and what may not change before them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.densenet import BUFFER_STRATEGIES
from tests.support.network_pairs import LAYER, OF_ALL_KINDS, ROUNDING, accumulate, doubles, gradients, naive_and_buffer
from tests.support.tensor_measurements import largest_difference, unequal


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_accumulated_gradients_are_the_same(order, strategy):
    parts = doubles(images=6).split(3)
    naive, buffer = (accumulate(network, parts, order) for network in naive_and_buffer(strategy))
    assert largest_difference(buffer, naive) <= ROUNDING
    assert buffer["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@pytest.mark.parametrize("strategy", BUFFER_STRATEGIES)
@OF_ALL_KINDS
def test_a_retained_graph_gives_the_same_gradients_again(config, strategy):
    network = naive_and_buffer(strategy, **({"drop_rate": 0.2} | config))[1]
    loss = network(doubles()).square().sum()
    loss.backward(retain_graph=True)
    once, state = gradients(network), copy.deepcopy(network.state_dict())
    loss.backward()
    assert unequal({name: 2 * gradient for name, gradient in once.items()}, gradients(network)) == []
    assert unequal(state, network.state_dict()) == []


def test_a_second_backward_pass_over_a_freed_graph_is_refused():
    loss = naive_and_buffer()[1](doubles()).square().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_second_derivatives_are_refused():
    network, images = naive_and_buffer()[1], doubles().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives; build the network with efficient='naive'"):
        gradient.square().sum().backward()


def test_the_gradient_that_autograd_hands_over_is_left_alone():
    network = naive_and_buffer()[1]
    grad = torch.randn(4, 5, dtype=torch.float64)
    before = grad.clone()
    of_averages = []

    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].register_hook(of_averages.append)

    network.classifier.register_forward_pre_hook(watch)
    network(doubles()).backward(grad)
    assert torch.equal(grad, before)
    assert torch.equal(of_averages[0], grad @ network.classifier.weight)


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.norm1.weight",
        f"{LAYER}.norm1.bias",
        f"{LAYER}.conv1.weight",
        f"{LAYER}.norm2.weight",
        f"{LAYER}.norm2.bias",
        f"{LAYER}.conv2.weight",
        "features.transition1.norm.bias",
        "features.transition1.conv.weight",
        "features.norm_final.weight",
    ],
)
def test_a_parameter_that_changes_before_the_backward_pass_is_noticed(name):
    network = naive_and_buffer()[1]
    loss = network(doubles()).square().sum()
    with torch.no_grad():
        network.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("norm", [f"{LAYER}.norm1", f"{LAYER}.norm2", "features.transition1.norm"])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_frozen_statistic_that_changes_before_the_backward_pass_is_noticed(norm, statistic):
    network = naive_and_buffer()[1]
    network.get_submodule(norm).eval()
    loss = network(doubles()).square().sum()
    network.get_buffer(f"{norm}.{statistic}").add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
