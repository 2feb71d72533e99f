import inspect
import re
import shutil
import subprocess
import sys
from math import erf, nan, sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import DenseNet as TorchvisionDenseNet

import models
from models import DROP_PLACES, STRATEGIES, DenseNet, densenet_bc, densenet_plain
from models.densenet import DenseLayer, PlainLayer

BC_PARAMETERS = [
    (40, 12, 10, 176_122),
    (100, 12, 10, 769_162),
    (100, 12, 100, 800_032),
    (250, 24, 10, 15_324_406),
    (190, 40, 10, 25_624_430),
    (190, 40, 100, 25_821_620),
    (40, 36, 10, 1_542_682),
    (40, 48, 10, 2_733_130),
    (40, 60, 10, 4_261_690),
]
# Depth, growth rate, parameters, and in millions as the paper's second table has them.
PLAIN_PARAMETERS = [(40, 12, 1_019_722, 1.0), (100, 12, 6_979_642, 7.0), (100, 24, 27_249_082, 27.2)]
IMAGENET_PARAMETERS = [
    (32, (6, 12, 24, 16), 64, 7_978_856),
    (32, (6, 12, 32, 32), 64, 14_149_480),
    (32, (6, 12, 48, 32), 64, 20_013_928),
    (48, (6, 12, 36, 24), 96, 28_681_000),
    (32, (6, 12, 64, 48), 64, 33_337_704),
]
SMALL_STATE = [
    "features.conv0.weight",
    "features.denseblock1.denselayer1.norm1.weight",
    "features.denseblock1.denselayer1.norm1.bias",
    "features.denseblock1.denselayer1.norm1.running_mean",
    "features.denseblock1.denselayer1.norm1.running_var",
    "features.denseblock1.denselayer1.norm1.num_batches_tracked",
    "features.denseblock1.denselayer1.conv1.weight",
    "features.denseblock1.denselayer1.norm2.weight",
    "features.denseblock1.denselayer1.norm2.bias",
    "features.denseblock1.denselayer1.norm2.running_mean",
    "features.denseblock1.denselayer1.norm2.running_var",
    "features.denseblock1.denselayer1.norm2.num_batches_tracked",
    "features.denseblock1.denselayer1.conv2.weight",
    "features.denseblock1.denselayer2.norm1.weight",
    "features.denseblock1.denselayer2.norm1.bias",
    "features.denseblock1.denselayer2.norm1.running_mean",
    "features.denseblock1.denselayer2.norm1.running_var",
    "features.denseblock1.denselayer2.norm1.num_batches_tracked",
    "features.denseblock1.denselayer2.conv1.weight",
    "features.denseblock1.denselayer2.norm2.weight",
    "features.denseblock1.denselayer2.norm2.bias",
    "features.denseblock1.denselayer2.norm2.running_mean",
    "features.denseblock1.denselayer2.norm2.running_var",
    "features.denseblock1.denselayer2.norm2.num_batches_tracked",
    "features.denseblock1.denselayer2.conv2.weight",
    "features.transition1.norm.weight",
    "features.transition1.norm.bias",
    "features.transition1.norm.running_mean",
    "features.transition1.norm.running_var",
    "features.transition1.norm.num_batches_tracked",
    "features.transition1.conv.weight",
    "features.denseblock2.denselayer1.norm1.weight",
    "features.denseblock2.denselayer1.norm1.bias",
    "features.denseblock2.denselayer1.norm1.running_mean",
    "features.denseblock2.denselayer1.norm1.running_var",
    "features.denseblock2.denselayer1.norm1.num_batches_tracked",
    "features.denseblock2.denselayer1.conv1.weight",
    "features.denseblock2.denselayer1.norm2.weight",
    "features.denseblock2.denselayer1.norm2.bias",
    "features.denseblock2.denselayer1.norm2.running_mean",
    "features.denseblock2.denselayer1.norm2.running_var",
    "features.denseblock2.denselayer1.norm2.num_batches_tracked",
    "features.denseblock2.denselayer1.conv2.weight",
    "features.norm_final.weight",
    "features.norm_final.bias",
    "features.norm_final.running_mean",
    "features.norm_final.running_var",
    "features.norm_final.num_batches_tracked",
    "classifier.weight",
    "classifier.bias",
]
IMAGENET_STEM_STATE = [
    "features.norm0.weight",
    "features.norm0.bias",
    "features.norm0.running_mean",
    "features.norm0.running_var",
    "features.norm0.num_batches_tracked",
]


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("depth", "growth_rate", "num_classes", "expected"), BC_PARAMETERS)
def test_densenet_bc_has_the_published_number_of_parameters(depth, growth_rate, num_classes, expected):
    with torch.device("meta"):
        network = densenet_bc(depth, growth_rate, num_classes=num_classes)
    assert count_parameters(network) == expected


def plain_parameters(depth: int, growth_rate: int, num_classes: int) -> int:
    """Count them: two for each channel of a norm, one for each pair of channels and pixel of a filter."""
    num_layers, channels = (depth - 4) // 3, 16
    total = 3 * 9 * channels
    for block in range(3):
        read = [channels + i * growth_rate for i in range(num_layers)]
        total += sum(2 * c + 9 * c * growth_rate for c in read)
        channels += num_layers * growth_rate
        total += 2 * channels + (channels**2 if block < 2 else 0)
    return total + (channels + 1) * num_classes


@pytest.mark.parametrize(("depth", "growth_rate", "expected", "millions"), PLAIN_PARAMETERS)
def test_densenet_has_the_published_number_of_parameters(depth, growth_rate, expected, millions):
    with torch.device("meta"):
        network = densenet_plain(depth, growth_rate)
    assert count_parameters(network) == expected == plain_parameters(depth, growth_rate, num_classes=10)
    assert round(expected / 1e6, 1) == millions


@pytest.mark.parametrize("num_classes", [1, 100])
def test_densenet_counts_a_row_of_the_classifier_for_each_class(num_classes):
    assert count_parameters(densenet_plain(10, 4, num_classes=num_classes)) == plain_parameters(10, 4, num_classes)


@pytest.mark.parametrize(("growth_rate", "block_config", "num_init_features", "expected"), IMAGENET_PARAMETERS)
def test_imagenet_form_has_the_published_number_of_parameters(growth_rate, block_config, num_init_features, expected):
    with torch.device("meta"):
        network = DenseNet(
            growth_rate=growth_rate,
            block_config=block_config,
            num_init_features=num_init_features,
            num_classes=1000,
            small_inputs=False,
        )
    assert count_parameters(network) == expected


def test_constructor_takes_the_arguments_of_earlier_code_in_their_order():
    *parameters, new = inspect.signature(DenseNet).parameters.values()
    assert [(parameter.name, parameter.default) for parameter in parameters] == [
        ("growth_rate", 12),
        ("block_config", (16, 16, 16)),
        ("compression", 0.5),
        ("num_init_features", 24),
        ("bn_size", 4),
        ("drop_rate", 0),
        ("num_classes", 10),
        ("small_inputs", True),
        ("efficient", False),
    ]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    assert (new.name, new.default, new.kind) == ("drop_where", "layers", new.KEYWORD_ONLY)


def test_builders_default_to_the_smallest_published_networks():
    assert count_parameters(densenet_bc()) == 176_122
    assert count_parameters(densenet_plain()) == 1_019_722
    assert densenet_plain().strategy == densenet_bc().strategy == "buffer"


@pytest.mark.parametrize(
    ("efficient", "strategy"),
    [(False, "naive"), (True, "buffer"), *((name, name) for name in STRATEGIES)],
)
def test_efficient_names_a_strategy(efficient, strategy):
    network = densenet_bc(16, 4, drop_rate=0.2, efficient=efficient)
    layers = [module for module in network.modules() if isinstance(module, DenseLayer)]
    assert network.strategy == strategy
    assert [layer.checkpoint for layer in layers] == [strategy == "checkpoint"] * 6
    assert {layer.drop_rate for layer in layers} == {0.2}


@pytest.mark.parametrize("place", ["", "layer", None, True, []])
def test_another_place_of_dropout_is_refused_with_the_known_ones(place):
    for build in (DenseNet, densenet_bc, densenet_plain):
        with pytest.raises(ValueError, match=rf"^drop_where is {re.escape(repr(place))}, .*layers, convolutions"):
            build(drop_where=place)


@pytest.mark.parametrize("efficient", ["", "True", "chekpoint", 1.5, None])
def test_an_unknown_strategy_is_refused_with_the_known_ones(efficient):
    with pytest.raises(ValueError, match=rf"efficient is {efficient!r}, .*naive, checkpoint, buffer"):
        DenseNet(efficient=efficient)


@pytest.mark.parametrize("place", DROP_PLACES)
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_state_dict_names(small_inputs, efficient, place):
    config = {"drop_rate": 0.2, "drop_where": place, "small_inputs": small_inputs, "efficient": efficient}
    network = DenseNet(4, (2, 1), num_init_features=8, **config)
    expected = SMALL_STATE if small_inputs else [SMALL_STATE[0], *IMAGENET_STEM_STATE, *SMALL_STATE[1:]]
    assert list(network.state_dict()) == expected


@pytest.mark.parametrize("place", DROP_PLACES)
def test_state_dict_names_without_bottlenecks_are_those_of_the_rest(place):
    network = DenseNet(4, (2, 1), num_init_features=8, bn_size=None, drop_rate=0.2, drop_where=place)
    expected = [name for name in SMALL_STATE if ".norm2." not in name and ".conv2." not in name]
    assert list(network.state_dict()) == expected
    assert network.features.denseblock1.denselayer2.conv1.weight.shape == (4, 12, 3, 3)


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


@pytest.mark.parametrize("build", [densenet_plain, densenet_bc])
def test_convolutions_start_normal_with_variance_by_kernel_and_output_channels(build):
    torch.manual_seed(0)
    convolutions = [module for module in build(40, 12).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 39
    standardised = []
    for convolution in convolutions:
        height, width = convolution.kernel_size
        std = sqrt(2 / (height * width * convolution.out_channels))
        numbers = convolution.weight.detach().double().flatten() / std
        # Standard errors of the mean and of the standard deviation of n numbers drawn from a standard normal.
        n = numbers.numel()
        assert abs(numbers.mean().item()) < 5 / sqrt(n)
        assert abs(numbers.std().item() - 1) < 5 / sqrt(2 * n)
        standardised.append(numbers)
    numbers = torch.cat(standardised)
    share_within_one_std = erf(1 / sqrt(2))
    sampling_error = sqrt(share_within_one_std * (1 - share_within_one_std) / numbers.numel())
    assert abs((numbers.abs() < 1).double().mean().item() - share_within_one_std) < 5 * sampling_error


def test_norms_start_as_identity_and_the_classifier_without_bias():
    network = densenet_bc(16, 4)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2 * 6 + 2 + 1
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
        assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert torch.equal(network.classifier.bias, torch.zeros(10))
    assert network.classifier.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("build", "depth"),
    [*((densenet_bc, depth) for depth in (10, 16, 40, 100)), (densenet_plain, 7), (densenet_plain, 100)],
)
def test_depth_is_the_number_of_weighted_layers(build, depth):
    with torch.device("meta"):
        network = build(depth)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth


# 43 - 4 divides by 3, but not by 6: a check by 3 lets it pass, and floor division then trains 40 layers unasked.
@pytest.mark.parametrize("depth", [-8, -2, 0, 3, 4, 7, 9, 11, 13, 41, 43, 100.5, nan])
def test_densenet_bc_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"^depth is {re.escape(repr(depth))}, .*6m \\+ 4"):
        densenet_bc(depth)


@pytest.mark.parametrize("depth", [-8, -2, 0, 1, 3, 4, 6, 8, 9, 41, 100.5, nan])
def test_densenet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"^depth is {re.escape(repr(depth))}, .*3m \\+ 4"):
        densenet_plain(depth)


@pytest.mark.parametrize("build", [densenet_plain, densenet_bc])
@pytest.mark.parametrize(("name", "value"), [("growth_rate", 0), ("num_classes", 0), ("drop_rate", 1)])
def test_builders_refuse_other_arguments_out_of_range(name, value, build):
    with pytest.raises(ValueError, match=f"^{name} is {value}, "):
        build(10, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("growth_rate", 0),
        ("growth_rate", -12),
        ("block_config", ()),
        ("block_config", (4, 0, 4)),
        ("compression", 0),
        ("compression", -0.5),
        ("compression", 1.5),
        ("compression", nan),
        ("compression", 0.001),
        ("num_init_features", 0),
        ("bn_size", 0),
        ("bn_size", nan),
        ("drop_rate", -0.1),
        ("drop_rate", 1),
        ("drop_rate", nan),
        ("num_classes", 0),
        ("num_classes", -1),
    ],
)
def test_constructor_refuses_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {re.escape(repr(value))}, but must be "):
        DenseNet(**{name: value})


def test_the_ends_of_the_ranges_are_allowed():
    network = DenseNet(1, (1, 1), compression=1, num_init_features=1, bn_size=1, drop_rate=0, num_classes=1)
    assert network(torch.randn(2, 3, 4, 4)).shape == (2, 1)


def torchvision_name(name: str) -> str:
    return name.replace("norm_final", "norm5")


def torchvision_twins(small_inputs: bool, drop_rate: float, efficient: bool) -> tuple[nn.Module, nn.Module]:
    """Build our network and torchvision's with the same random weights and statistics, in float64."""
    torch.manual_seed(0)
    block_config = (2, 3, 2) if small_inputs else (2, 3, 2, 2)
    theirs = TorchvisionDenseNet(8, block_config, num_init_features=16, drop_rate=drop_rate, num_classes=10)
    if small_inputs:
        theirs.features.conv0 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        del theirs.features.norm0, theirs.features.relu0, theirs.features.pool0
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.5)
                module.running_mean.normal_(std=0.5)
                module.running_var.uniform_(0.5, 1.5)
    ours = DenseNet(
        8,
        block_config,
        num_init_features=16,
        drop_rate=drop_rate,
        small_inputs=small_inputs,
        efficient=efficient,
    )
    state = theirs.state_dict()
    ours.load_state_dict({name: state[torchvision_name(name)] for name in ours.state_dict()})
    return ours.double(), theirs.double()


def training_step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images = images.clone().requires_grad_()
    logits = network(images)
    F.cross_entropy(logits, labels).backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"logits": logits, "gradient of images": images.grad, **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("drop_rate", [0, 0.2])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_training_step_and_evaluation_agree_with_torchvision(small_inputs, drop_rate, efficient):
    ours, theirs = torchvision_twins(small_inputs, drop_rate, efficient)
    images = torch.randn(4, 3, *((16, 16) if small_inputs else (64, 64)), dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 9])

    step, their_step = (training_step(network, images, labels) for network in (ours, theirs))
    assert {torchvision_name(name) for name in step} == their_step.keys()
    for name, tensor in step.items():
        expected = their_step[torchvision_name(name)]
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)
        assert tensor.abs().sum() > 0, name

    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-9, atol=1e-12)


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


VENDORED = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
import torch.utils.checkpoint

before = set(sys.modules)
import vendored_net

after = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = after - {"vendored_net", "torch"} - sys.stdlib_module_names
assert not foreign, foreign
assert not {"data", "models", "torchvision", "train"} & set(sys.modules)

network = vendored_net.densenet_bc(10, 4)
network(torch.randn(2, 3, 8, 8)).sum().backward()
assert type(network).__module__ == "vendored_net.densenet"
print(tuple(network.features.conv0.weight.grad.shape))
"""


def test_the_folder_works_under_another_name_with_torch_alone(tmp_path):
    source = Path(models.__file__).parent
    shutil.copytree(source, tmp_path / "vendored_net", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-B", "-W", "error", "-c", VENDORED, tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout == "(8, 3, 3, 3)\n"
