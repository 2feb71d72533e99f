"""Weights with the names of other programs give the logits that these programs compute."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models import DenseNet, densenet_arguments, densenet_bc, densenet_plain, load_weights, weight_places
from models.weight_layouts import LAYOUTS, OWN
from tests.support.other_programs import OTHER_NETWORKS, PyTorchCv, Veit, small_veit
from tests.support.perturbed_weights import with_prefixes, with_random_norms
from tests.support.tensor_measurements import unequal

ONLY = "the weights do not fit the network"


def logits_of(network: nn.Module, size: int = 32) -> torch.Tensor:
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return network.double().eval()(images)


def assert_same_logits(ours: DenseNet, theirs: nn.Module) -> None:
    size = 32 if len(ours.features) < 10 else 64
    actual, expected = logits_of(ours, size), logits_of(theirs, size)
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("program", OTHER_NETWORKS)
def test_a_network_built_from_the_weights_alone_has_the_logits_of_the_other_program(program):
    torch.manual_seed(0)
    theirs = with_random_norms(OTHER_NETWORKS[program]()).double()
    weights = theirs.state_dict()
    ours = DenseNet(**densenet_arguments(weights)).double()
    assert sum(map(torch.numel, ours.parameters())) == sum(map(torch.numel, theirs.parameters()))
    assert load_weights(ours, weights) == []
    assert_same_logits(ours, theirs)


def lightning(weights: dict) -> dict:
    return {
        "state_dict": with_prefixes("backbone.")(weights),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}],
        "pytorch-lightning_version": "2.5.0",
    }


WRAPPED = {
    "as it is": lambda network: network.state_dict(),
    "a prefix": lambda network: with_prefixes("model.")(network.state_dict()),
    "DataParallel": lambda network: nn.DataParallel(network).state_dict(),
    "compiled, in DataParallel": lambda network: with_prefixes("module._orig_mod.")(network.state_dict()),
    "AveragedModel": lambda network: AveragedModel(network).state_dict(),
    "Lightning": lambda network: lightning(network.state_dict()),
    "safetensors": lambda network: load(save(network.state_dict())),
    "a training script": lambda network: {
        "epoch": 300,
        "best_prec1": torch.tensor(95.2),
        "state_dict": with_prefixes("module.")(network.state_dict()),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]},
    },
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_come_off_whatever_the_names_inside_are(wrapper):
    theirs = small_veit().double()
    ours = densenet_bc(16, 4).double()
    assert load_weights(ours, WRAPPED[wrapper](theirs)) == []
    assert_same_logits(ours, theirs)


def test_a_classifier_of_other_classes_is_left_on_request():
    theirs, ours = small_veit(num_classes=7), densenet_bc(16, 4)
    assert load_weights(ours, theirs.state_dict(), replace_classifier=True) == ["classifier.weight", "classifier.bias"]
    assert torch.equal(ours.features.conv0.weight, theirs.conv1.weight)


def test_a_new_classifier_does_not_hide_how_the_networks_differ():
    with pytest.raises(
        ValueError, match=rf"{ONLY}, as they are of one with block_config \(2, 2, 2\), not \(1, 1, 1\); "
    ):
        load_weights(densenet_bc(10, 4), small_veit(num_classes=7).state_dict(), replace_classifier=True)


def test_averages_come_last_with_other_names_too():
    weights, ours = small_veit().state_dict(), densenet_bc(16, 4)
    content = {"ema": {name: value + 1 for name, value in weights.items()}, "net": weights}
    load_weights(ours, content)
    assert torch.equal(ours.classifier.bias, weights["fc.bias"])
    assert weight_places(ours, content) == ["net", "ema"]


def resnet_names(prefix: str = "") -> dict:
    names = [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
        "layer1.1.conv1.weight",
        "layer1.1.bn1.weight",
        "layer1.1.bn1.bias",
        "fc.bias",
    ]
    return {prefix + name: torch.ones(8) for name in names}


def changed(change, **others) -> dict:
    weights = dict(small_veit(**others).state_dict())
    change(weights)
    return weights


REFUSED = {
    "deeper": (
        Veit(layers=3).state_dict(),
        rf"{ONLY}, as they are of one with block_config \(3, 3, 3\), not \(2, 2, 2\); unexpected: ",
    ),
    "wider": (
        Veit(growth_rate=6).state_dict(),
        rf"{ONLY}, as they are of one with growth_rate 6, not 4 and num_init_features 12, not 8; unfit: "
        r"features.conv0.weight is \(12, 3, 3, 3\), not \(8, 3, 3, 3\), ",
    ),
    "without bottlenecks": (
        Veit(has_bottleneck=False, layers=2).state_dict(),
        rf"{ONLY}, as they are of one with bn_size None, not 4; missing: features.denseblock1.denselayer1.norm2.weight",
    ),
    "for ImageNet": (
        PyTorchCv(blocks=(2, 2, 2), is_small=False).state_dict(),
        rf"{ONLY}, as they are of one with small_inputs False, not True; unexpected: 'features.norm0.weight'",
    ),
    "other classes": (small_veit(num_classes=7).state_dict(), rf"{ONLY}; unfit: classifier.weight is \(7, 16\), not "),
    "one tensor less": (
        changed(lambda weights: weights.pop("trans2.conv1.weight")),
        f"{ONLY}; missing: features.transition2.conv.weight$",
    ),
    "one tensor more": (
        changed(lambda weights: weights.update({"head.weight": torch.ones(1)})),
        f"{ONLY}; unexpected: 'head.weight'$",
    ),
    "a name of another program": (
        changed(lambda weights: weights.update({"classifier.bias": weights.pop("fc.bias")})),
        "the names of the weights are those of andreasveit/densenet-pytorch, but not 'classifier.bias'$",
    ),
    "the same tensor by two names": (
        changed(lambda weights: weights.update({"module.fc.bias": weights["fc.bias"]})),
        "the weights hold 'classifier.bias' under two names$",
    ),
    "a ResNet": (
        resnet_names(),
        f"{ONLY}; missing: features.conv0.weight, .* unexpected: 'conv1.weight', 'bn1.weight'",
    ),
    "a ResNet with a prefix": (resnet_names("backbone."), f"{ONLY}; missing: .* unexpected: 'backbone.conv1.weight', "),
    "new feature maps first": (
        {f"dense1.{name}": value for name, value in resnet_names().items()},
        f"{ONLY}; missing: .* unexpected: 'dense1.conv1.weight', ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line_and_changes_nothing(case):
    weights, message = REFUSED[case]
    ours = densenet_bc(16, 4)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        load_weights(ours, weights)
    assert "\n" not in str(refusal.value)
    assert unequal(ours.state_dict(), before) == []


ARGUMENTS = {
    "bc": lambda: densenet_bc(10, 6, num_classes=3),
    "bc for larger images": lambda: densenet_bc(16, 2, small_inputs=False),
    "plain": lambda: densenet_plain(10, 5),
    "one block": lambda: DenseNet(growth_rate=3, block_config=(4,), num_init_features=5),
    "odd": lambda: DenseNet(growth_rate=3, block_config=(1, 2), compression=0.37, num_init_features=7, bn_size=2),
    "odder": lambda: DenseNet(growth_rate=7, block_config=(5, 1, 1), compression=0.4321, num_init_features=100),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_arguments_of_a_network_are_read_from_its_weights(case):
    network = ARGUMENTS[case]()
    again = DenseNet(**densenet_arguments(network.state_dict()))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "the weights are of no DenseNet: there is no features.denseblock1.denselayer1.conv1.weight$"),
        (resnet_names(), "the weights are of no DenseNet: there is no features.denseblock1.denselayer1.conv1.weight$"),
        (
            changed(lambda weights: weights.pop("fc.weight")),
            "the weights are of no DenseNet: there is no classifier.weight$",
        ),
        (
            changed(lambda weights: weights.update({"conv1.weight": torch.ones(0, 3, 3, 3)})),
            "the weights are of no DenseNet: features.conv0.weight has no values$",
        ),
        (
            changed(lambda weights: weights.update({"trans1.conv1.weight": torch.ones(3)})),
            "the weights are of no DenseNet: a transition has no channels$",
        ),
    ],
)
def test_weights_of_no_densenet_are_told(weights, message):
    with pytest.raises(ValueError, match=message):
        densenet_arguments(weights)


def test_each_layout_reads_its_names_and_no_other_layout_does():
    own = [f"{name.format(block=2, layer=3, part=1)}.weight" for name in OWN]
    assert [LAYOUTS[0].read(f"a.b.{name}") for name in own] == [("a.b.", name) for name in own]
    for program in OTHER_NETWORKS.values():
        names = program().state_dict()
        layers = {name: [bool(layout.read(name)) for layout in LAYOUTS] for name in names if "0.bn" in name}
        assert all(sum(reads) == 1 for reads in layers.values())
