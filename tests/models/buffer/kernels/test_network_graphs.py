"""Backward passes by kernels: over one graph and over several, of some parameters, and elsewhere than forward."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.support.kernel_networks import (
    CAPABILITIES,
    LIBRARY,
    by_kernels,
    few_images,
    naive_and_buffer,
    random_gradient,
    step,
)
from tests.support.network_pairs import DROPPING, LAYER, accumulate, gradients
from tests.support.tensor_measurements import largest_difference, record, unequal
from tests.support.triton_interpreter import DEVICE, MARKS

pytestmark = MARKS

ROUNDING = 3e-5  # Largest relative difference between two ways to compute the same thing in 32 bits.


@CAPABILITIES
def test_gradients_of_several_graphs_add_up(capability):
    naive, buffer = naive_and_buffer()
    parts = few_images(images=4).split(2)
    with by_kernels(capability):
        expected = accumulate(naive, parts, (0, 1))
        actual = accumulate(buffer, parts, (0, 1))
    assert largest_difference(actual, expected) < ROUNDING
    assert actual["features.denseblock1.denselayer1.norm1.num_batches_tracked"] == 2


@CAPABILITIES
def test_a_retained_graph_gives_the_same_gradients_again(capability):
    network = naive_and_buffer("buffer_fast", block_config=(2,), **DROPPING)[1]
    with by_kernels(capability):
        loss = network(few_images()).square().sum()
        loss.backward(retain_graph=True)
        once, state = gradients(network), copy.deepcopy(network.state_dict())
        loss.backward()
    assert unequal({name: 2 * gradient for name, gradient in once.items()}, gradients(network)) == []
    assert unequal(state, network.state_dict()) == []


@CAPABILITIES
@pytest.mark.parametrize("part", [f"{LAYER}.norm1", "features.transition1.conv"])
def test_training_a_part_is_the_same(part, capability):
    naive, buffer = naive_and_buffer()
    for network in (naive, buffer):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(part))
    with by_kernels(capability) as launches:
        expected, actual = (step(network, few_images()) for network in (naive, buffer))
    assert launches
    assert largest_difference(actual, expected) < ROUNDING


GRADIENTS = {
    "expanded": torch.Tensor.sum,
    "transposed": lambda averages: (averages.t().contiguous() @ averages.new_tensor([[1.0], [-2.0]])).square().sum(),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_of_averages_may_have_any_strides(kind):
    networks = naive_and_buffer(block_config=(1,))
    for network in networks:
        network.classifier = nn.Identity()
    with by_kernels(LIBRARY):
        for network in networks:
            GRADIENTS[kind](network(few_images())).backward()
    naive, buffer = map(gradients, networks)
    assert largest_difference(buffer, naive) < ROUNDING


@CAPABILITIES
def test_second_derivatives_are_refused(capability):
    network, images = naive_and_buffer(block_config=(1,))[1], few_images().requires_grad_()
    with by_kernels(capability):
        (gradient,) = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives; build the network with efficient='naive'"):
            gradient.square().sum().backward()


@CAPABILITIES
@pytest.mark.parametrize("part", ["norm1.weight", "conv1.weight", "norm2.bias", "conv2.weight"])
def test_a_parameter_that_changes_before_the_backward_pass_is_noticed(part, capability):
    network = naive_and_buffer(block_config=(1,))[1]
    with by_kernels(capability):
        loss = network(few_images()).square().sum()
        with torch.no_grad():
            network.get_parameter(f"features.denseblock1.denselayer1.{part}").add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.skipif(DEVICE == "cuda", reason="kernels are used in both passes")
@CAPABILITIES
@pytest.mark.parametrize("runs_forward", [True, False])
def test_one_pass_may_run_by_kernels_and_the_other_without(runs_forward, capability):
    naive, buffer = naive_and_buffer(**DROPPING)
    with by_kernels(capability):
        expected = step(naive, few_images())
    images = few_images().requires_grad_()
    torch.manual_seed(1)
    with by_kernels(capability) if runs_forward else nullcontext():
        result = buffer(images)
    with nullcontext() if runs_forward else by_kernels(capability):
        result.backward(random_gradient(result))
    actual = record(buffer, result=result, **{"gradient of images": images.grad})
    assert largest_difference(actual, expected) < ROUNDING


@CAPABILITIES
def test_tensors_may_be_saved_as_copies_of_other_strides(capability):
    """Among them bottlenecks, and rows that were padded."""
    first, second = (naive_and_buffer("buffer_fast", block_config=(2,), **DROPPING)[1] for _ in range(2))
    with by_kernels(capability):
        expected = step(first, few_images())
        with torch.autograd.graph.save_on_cpu():
            actual = step(second, few_images())
    assert unequal(actual, expected) == []


def test_an_evaluation_between_the_passes_changes_nothing():
    naive, buffer = naive_and_buffer()
    with by_kernels(LIBRARY) as launches:
        expected = step(buffer, few_images())

        def evaluates_too(network, images):
            result = network(images)
            num_launches = len(launches)
            naive.load_state_dict(network.state_dict())
            with torch.no_grad():
                assert torch.equal(network.eval()(images), naive.eval()(images))
            assert len(launches) == num_launches  # plain modules run
            network.train()
            return result

        assert unequal(step(naive_and_buffer()[1], few_images(), read=evaluates_too), expected) == []
