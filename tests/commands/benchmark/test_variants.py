"""Other implementations in the benchmark train the same network."""

import pytest
import torch

from commands.benchmark.agreement import observe
from commands.benchmark.measure import memory_of_step
from commands.benchmark.variants import build_ours, checkpoint_whole_layers, random_weights, torchvision_densenet
from models import IMAGENET_NETWORKS, densenet_bc
from tests.support.benchmark_cases import BASELINES, SMALL, small, variant, variants


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize(("depth", "growth_rate"), [(10, 2), (16, 5), (40, 12)])
def test_torchvisions_network_is_the_same_function_with_the_same_parameters(depth, growth_rate, memory_efficient):
    ours = densenet_bc(depth, growth_rate, efficient=False)
    case = small(depth=depth, growth_rate=growth_rate)
    theirs = torchvision_densenet(case.network, memory_efficient=memory_efficient)
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1]
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(theirs(images), ours(images))
    if not memory_efficient:  # which updates running statistics again when it goes backward
        assert torch.equal(theirs.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("name", BASELINES)
def test_other_implementations_have_the_loss_and_the_gradients_of_naive(name):
    weights = random_weights(variant("naive"), SMALL)
    expected, actual = (observe(variant(which).step(SMALL, weights)) for which in ("naive", name))
    names = [tensor for tensor in expected if tensor == "loss" or tensor.startswith("gradient of")]
    assert len(names) > 20
    for tensor in names:
        torch.testing.assert_close(actual[tensor], expected[tensor], msg=tensor)


def test_whole_layers_run_again_in_the_backward_pass_and_update_statistics_twice():
    network = checkpoint_whole_layers(densenet_bc(16, 2, efficient=False))
    calls = []
    network.get_submodule("features.denseblock1.denselayer2.conv2").register_forward_pre_hook(
        lambda *_: calls.append("layer")
    )
    network.get_submodule("features.transition1.conv").register_forward_pre_hook(lambda *_: calls.append("transition"))
    loss = network(torch.randn(2, 3, 8, 8)).sum()
    assert calls == ["layer", "transition"]
    loss.backward()
    assert sorted(calls) == ["layer", "layer", "transition", "transition"]
    updates = {name: int(b) for name, b in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert {n for n, count in updates.items() if count == 1} == {"features.norm_final.num_batches_tracked"}
    assert {count for count in updates.values()} == {1, 2}


def test_whole_layers_keep_less_than_single_bottlenecks():
    case = small(depth=40, growth_rate=8)
    kept = {name: memory_of_step(variant(name).step(case)).kept for name in ("naive", "checkpoint", BASELINES[2])}
    assert kept[BASELINES[2]] < kept["checkpoint"] < kept["naive"]


LARGE = [
    small(depth=16, growth_rate=4, image_size=72),
    *(
        small(network=name, depth=entry.depth, growth_rate=entry.growth_rate, image_size=64)
        for name, entry in IMAGENET_NETWORKS.items()
    ),
]


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.size)
def test_torchvisions_network_has_the_parameters_of_ours_for_large_images_too(case):
    with torch.device("meta"):
        ours, theirs = build_ours("naive", case.network), torchvision_densenet(case.network, memory_efficient=False)
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert "features.norm0.weight" in shapes[0]


def test_torchvisions_network_is_the_same_function_of_large_images():
    ours = build_ours("naive", LARGE[0].network)
    theirs = torchvision_densenet(LARGE[0].network, memory_efficient=False)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 72, 72)
    assert torch.equal(theirs(images), ours(images))


def test_torchvision_is_left_out_where_it_cannot_be_the_same_network():
    assert [
        found.name for found in variants(small(network="densenet", depth=13).network) if not found.is_ours
    ] == BASELINES[2:]
    for case in [SMALL, *LARGE]:
        assert [found.name for found in variants(case.network) if not found.is_ours] == BASELINES
