"""The sizes of maps and logits, and the maps that dropout leaves."""

from math import sqrt

import pytest
import torch

from models import DenseNet, densenet_bc, densenet_plain
from models.layers import DenseLayer, PlainLayer


@pytest.mark.parametrize(("build", "depth"), [(densenet_plain, 7), (densenet_bc, 10)])
def test_builders_can_start_as_for_imagenet(build, depth):
    small, large = build(depth, 4), build(depth, 4, small_inputs=False)
    names = [name for name, _ in large.features.named_children()]
    assert names[:4] == ["conv0", "norm0", "relu0", "pool0"]
    assert names[4:] == [name for name, _ in small.features.named_children()][1:]
    assert names.count("norm_final") == 1
    assert sum(name.startswith("denseblock") for name in names) == 3
    assert large.features(torch.randn(2, 3, 64, 32)).shape[2:] == (4, 2)
    assert small.features(torch.randn(2, 3, 64, 32)).shape[2:] == (16, 8)


# The smallest promised sides are 4 pixels for three blocks and 32 for the four blocks of the ImageNet form.
@pytest.mark.parametrize(
    ("small_inputs", "height", "width"),
    [(True, 4, 4), (True, 8, 8), (True, 9, 14), (True, 32, 32), (False, 32, 32), (False, 32, 70), (False, 65, 64)],
)
@pytest.mark.parametrize("num_classes", [1, 10, 100])
def test_maps_images_of_any_size_to_logits_of_their_type(small_inputs, height, width, num_classes):
    block_config = (1, 2, 1) if small_inputs else (1, 2, 1, 1)
    network = DenseNet(
        4, block_config, num_init_features=8, num_classes=num_classes, small_inputs=small_inputs, efficient=True
    )
    logits = network(torch.randn(2, 3, height, width))
    assert logits.shape == (2, num_classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("small_inputs", [True, False])
def test_stem_and_transitions_divide_the_sides(small_inputs):
    network = DenseNet(4, (1, 1), num_init_features=8, small_inputs=small_inputs)
    maps = network.features(torch.randn(2, 3, 64, 32))
    assert maps.shape == ((2, 10, 32, 16) if small_inputs else (2, 10, 8, 4))


# (16 + 2 * 8) = 32 channels reach the first transition, and what it keeps + 8 the second.
@pytest.mark.parametrize(
    ("compression", "first", "second"), [(0.5, (16, 32), (12, 24)), (0.3, (9, 32), (5, 17)), (1, (32, 32), (40, 40))]
)
def test_compression_rounds_the_channels_of_transitions_down(compression, first, second):
    network = DenseNet(8, (2, 1, 1), compression, num_init_features=16)
    assert network.features.transition1.conv.weight.shape[:2] == first
    assert network.features.transition2.conv.weight.shape[:2] == second
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("kind", ["bottleneck", "plain"])
@pytest.mark.parametrize("efficient", [False, True])
def test_dropout_zeroes_and_rescales_the_new_maps_in_training_only(efficient, kind):
    torch.manual_seed(0)
    settings = {"growth_rate": 4, "drop_rate": 0.2, "checkpoint": efficient}
    layer = DenseLayer(6, bn_size=4, **settings) if kind == "bottleneck" else PlainLayer(6, **settings)
    features = [torch.randn(8, 2, 16, 16), torch.randn(8, 4, 16, 16)]
    dropped = layer(features)
    layer.drop_rate = 0
    full = layer(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], full[kept] / 0.8)
    assert abs(kept.double().mean().item() - 0.8) < 5 * sqrt(0.8 * 0.2 / kept.numel())

    layer.drop_rate = 0.2
    assert (layer.eval()(features) != 0).all()
