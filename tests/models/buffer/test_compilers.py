"""Compilers, exporters, tracers and transforms see plain modules and no feature buffer, and a warning says so."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor

from models import DenseNet
from models.densenet import STRATEGIES
from tests.support.network_pairs import PLAIN, SMALL, assert_same_training, doubles, naive_and_buffer
from tests.support.tensor_measurements import naive_and

TINY = {"block_config": (1, 1)}
OF_ALL_STRATEGIES = pytest.mark.parametrize("strategy", STRATEGIES)


def naive_and_other(strategy: str) -> tuple[DenseNet, DenseNet]:
    naive, other = naive_and(strategy, **SMALL)
    return naive.double(), other.double()


def says(reason: str, strategy: str = "buffer") -> AbstractContextManager[object]:
    """Expect a warning, from every strategy but the one that keeps everything anyway."""
    message = f"runs module by module and keeps more memory: {reason} can only follow plain modules"
    return nullcontext() if strategy == "naive" else pytest.warns(UserWarning, match=message)


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
def test_a_compiled_network_trains_the_same_and_says_what_it_keeps(config, blocks_over_buffers):
    naive, buffer = naive_and_buffer(**(config | TINY))
    buffer.compile(backend="eager", fullgraph=True)  # a warning breaks no graph
    with says("torch.compile or torch.export"):
        assert_same_training(naive, buffer, doubles())
    assert blocks_over_buffers == []


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_network_gives_the_same_logits(training, blocks_over_buffers):
    network = naive_and_buffer(**TINY)[1].train(training)
    with says("torch.compile or torch.export", "buffer" if training else "naive"):
        exported = torch.export.export(network, (doubles(),)).module()
    assert blocks_over_buffers == []
    torch.testing.assert_close(exported(doubles()), network(doubles()), rtol=1e-12, atol=1e-12)


def test_a_traced_network_gives_the_same_logits(blocks_over_buffers):
    network = naive_and_buffer(**TINY)[1]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")  # There are more, of an old tracer, and of what it cannot record.
        traced = torch.jit.trace(network, (doubles(),), check_trace=False)
    assert any("torch.jit.trace can only follow plain modules" in str(warning.message) for warning in seen)
    assert blocks_over_buffers == []
    torch.testing.assert_close(traced(doubles()), network(doubles()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@OF_ALL_STRATEGIES
def test_torch_fx_extracts_the_maps_of_a_block(strategy, training):
    naive, network = naive_and_other(strategy)
    with says("torch.fx", strategy):  # It traces the network in both modes.
        extractor = create_feature_extractor(network.train(training), ["features.denseblock2"])
    expected = nn.Sequential(*list(naive.train(training).features.children())[:4])(doubles())
    assert torch.equal(extractor(doubles())["features.denseblock2"], expected)


def test_what_torch_fx_extracts_is_not_overwritten():
    network = naive_and_buffer()[0].eval()
    names = ["features.norm_final", "features.transition1.norm", "features.denseblock1.denselayer1.norm2", "classifier"]
    outputs = create_feature_extractor(network, names)(doubles())
    assert all(outputs[name].min() < 0 for name in names)
    assert torch.equal(outputs["classifier"], network(doubles()))


def detached(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of all parameters and buffers, for transforms, which may not change those of the network."""
    return (
        {name: parameter.detach().clone() for name, parameter in network.named_parameters()},
        {name: buffer.clone() for name, buffer in network.named_buffers()},
    )


def loss_of(network: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """The loss as a function of the parameters."""
    _, buffers = detached(network)
    return lambda parameters: (
        functional_call(network, (parameters, {name: buffer.clone() for name, buffer in buffers.items()}), (doubles(),))
        .square()
        .sum()
    )


@OF_ALL_STRATEGIES
def test_gradients_of_torch_func_are_those_of_backward(strategy):
    naive, network = naive_and_other(strategy)
    parameters, _ = detached(network)
    with says("a transform of torch.func", strategy):
        gradients = grad(loss_of(network))(parameters)
        _, pull_back = vjp(loss_of(network), parameters)
    naive(doubles()).square().sum().backward()
    (pulled,) = pull_back(torch.ones((), dtype=torch.float64))
    for name, parameter in naive.named_parameters():
        for gradient in (gradients[name], pulled[name]):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # Torch itself uses it.
@OF_ALL_STRATEGIES
def test_forward_mode_gives_the_directional_derivative(strategy):
    network = naive_and_other(strategy)[1]
    parameters, _ = detached(network)
    loss, tangents = loss_of(network), {name: torch.ones_like(tensor) for name, tensor in parameters.items()}
    with says("a transform of torch.func", strategy):
        _, of_transform = jvp(loss, (parameters,), (tangents,))
    with says("forward-mode differentiation", strategy), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(tensor, tangents[name]) for name, tensor in parameters.items()}
        of_duals = forward_ad.unpack_dual(loss(duals)).tangent
    step = 1e-6  # Central differences, whose error is a multiple of its square.
    above, below = (loss({name: tensor + sign * step for name, tensor in parameters.items()}) for sign in (1, -1))
    torch.testing.assert_close(of_duals, (above - below) / (2 * step), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_transform, of_duals, rtol=1e-10, atol=1e-10)


@OF_ALL_STRATEGIES
def test_make_fx_records_a_network_in_training(strategy):
    naive, network = naive_and_other(strategy)
    with says("make_fx", strategy):
        graph = make_fx(lambda images: network(images))(doubles())
    torch.testing.assert_close(graph(doubles()), naive(doubles()), rtol=1e-12, atol=1e-12)


@OF_ALL_STRATEGIES
@pytest.mark.parametrize("small_inputs", [True, False])
def test_shapes_can_be_computed_without_memory(strategy, small_inputs):
    with torch.device("meta"):
        network = DenseNet(**SMALL, efficient=strategy, small_inputs=small_inputs)
        with says("device meta", strategy):
            logits = network(torch.empty(2, 3, 32, 32))
        logits.sum().backward()
    assert logits.shape == (2, 5)
    assert logits.is_meta
    assert all(parameter.grad.shape == parameter.shape for parameter in network.parameters())
