"""Weights of other DenseNets: torchvision's give torchvision's results, and what does not fit changes nothing."""

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from models import IMAGENET_NETWORKS, load_weights, torchvision_names
from tests.support.perturbed_weights import (
    other_weights,
    small_network,
    with_dotted_names,
    with_prefixes,
    with_random_norms,
)
from tests.support.tensor_measurements import unequal
from train.run.checkpoint import Checkpoint
from train.run.files import load_tensors
from train.run.history import Row
from train.run.identity import RunIdentity
from train.run.open_folder import OpenFolder
from train.run.run_folder import RunFolder

TORCHVISION = ("densenet121", "densenet169", "densenet201", "densenet161")


def step(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and gradients by name, of a loss that weighs all logits differently."""
    network.zero_grad()
    logits = network(images)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    assert expected.abs().max() > 0, name
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max(), name


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_and_ours_have_the_same_outputs_and_gradients(name):
    torch.manual_seed(0)
    theirs = with_random_norms(getattr(torchvision_models, name)(num_classes=5)).double()
    ours = IMAGENET_NETWORKS[name].build(5).double()
    assert load_weights(ours, theirs.state_dict()) == []
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for mode in (False, True):
        expected, their_gradients = step(theirs.train(mode), images)
        actual, gradients = step(ours.train(mode), images)
        assert_close(actual, expected, "logits")
        their_gradients = {name.replace("norm5", "norm_final"): grad for name, grad in their_gradients.items()}
        assert gradients.keys() == their_gradients.keys()
        for parameter, expected in their_gradients.items():
            assert_close(gradients[parameter], expected, parameter)
    statistics = {name: value for name, value in theirs.state_dict().items() if "running" in name}
    for name, expected in statistics.items():
        assert_close(torchvision_names(ours.state_dict())[name], expected, name)


def test_torchvision_loads_ours_back():
    ours = with_random_norms(IMAGENET_NETWORKS["densenet121"].build(5))
    theirs = torchvision_models.densenet121(num_classes=5)
    theirs.load_state_dict(torchvision_names(ours.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs.eval()(images), ours.eval()(images), rtol=1e-5, atol=1e-5)


FORMS = {
    "as they are": dict,
    "norm5": torchvision_names,
    "DataParallel": with_prefixes("module."),
    "compiled": with_prefixes("_orig_mod."),
    "both": with_prefixes("module.", "_orig_mod."),
    "both, turned round": with_prefixes("_orig_mod.", "module."),
    "twice": with_prefixes("module.", "module.", "_orig_mod.", "_orig_mod."),
    "wrapped": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}},
    "wrapped otherwise": lambda weights: {"model": weights, "args": None},
    "wrapped as in tutorials": lambda weights: {"model_state_dict": weights, "loss": 0.5},
    "wrapped with prefixes": lambda weights: {"state_dict": with_prefixes("module.")(torchvision_names(weights))},
    "parameters": lambda weights: {
        name: nn.Parameter(value, value.is_floating_point()) for name, value in weights.items()
    },
    "any order": lambda weights: dict(reversed(weights.items())),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("efficient", [False, True])
def test_every_form_is_loaded_whole(form, efficient):
    weights, network = other_weights(), small_network(efficient=efficient)
    assert unequal(network.state_dict(), weights) != []
    assert load_weights(network, FORMS[form](weights)) == []
    assert unequal(network.state_dict(), weights) == []


def test_counters_that_old_files_lack_are_left_and_named():
    weights, network = other_weights(), small_network()
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert load_weights(network, with_dotted_names(weights)) == counters
    assert unequal(network.state_dict(), weights) == counters
    assert all(network.state_dict()[name] == 0 for name in counters)


def test_the_files_of_a_run_are_loaded(tmp_path):
    weights, folder = other_weights(), RunFolder(tmp_path, OpenFolder(tmp_path), identity=RunIdentity())
    later = {name: value + 1 for name, value in weights.items()}
    rows = [Row(1, 2.0, 0.75, 2.0, 0.5, None, 0.1, 1.5, 100.0, None)]
    folder.save(Checkpoint(rows, network=later, chosen=weights))
    for name in ("model.pt", "checkpoint.pt"):
        network = small_network()
        assert load_weights(network, load_tensors(tmp_path / name)) == []
        assert unequal(network.state_dict(), weights) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_network_keeps_its_type(dtype):
    weights, network = other_weights(), small_network()
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    load_weights(network, cast)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(value, cast[name].to(value.dtype)), name


def test_weights_are_copied():
    weights, network = other_weights(), small_network()
    load_weights(network, weights)
    kept = {name: value.clone() for name, value in weights.items()}
    with torch.no_grad():
        for value in network.state_dict().values():
            value.zero_()
    assert unequal(weights, kept) == []


CLASSIFIER = ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("form", ["as they are", "norm5", "both", "wrapped"])
def test_a_classifier_of_other_classes_is_left_on_request(form):
    weights, network = other_weights(num_classes=7), small_network()
    own_classifier = {name: network.state_dict()[name].clone() for name in CLASSIFIER}
    assert load_weights(network, FORMS[form](weights), replace_classifier=True) == CLASSIFIER
    assert unequal(network.state_dict(), {**weights, **own_classifier}) == []


def test_a_missing_classifier_is_left_on_request():
    weights = {name: value for name, value in other_weights().items() if name not in CLASSIFIER}
    assert load_weights(small_network(), weights, replace_classifier=True) == CLASSIFIER


def test_a_classifier_that_fits_is_loaded_all_the_same():
    network = small_network()
    assert load_weights(network, other_weights(), replace_classifier=True) == []
    assert unequal(network.state_dict(), other_weights()) == []


def test_half_a_classifier_is_none():
    weights, network = {**other_weights(), "classifier.weight": torch.ones(7, 12)}, small_network()
    before = network.classifier.bias.clone()
    assert load_weights(network, weights, replace_classifier=True) == CLASSIFIER
    assert torch.equal(network.classifier.bias, before)


CONV0, CONV1 = "features.conv0.weight", "features.denseblock1.denselayer1.conv1.weight"
COUNTER = "features.norm_final.num_batches_tracked"


def without(*names: str) -> dict:
    return {name: value for name, value in other_weights().items() if name not in names}


REFUSED = {
    "missing": (without(CONV0), f"missing: {CONV0}$"),
    "many missing": (
        without(*list(other_weights())[1:7]),
        r"missing: (features\.[\w.]+, ){2}features\.[\w.]+ and 2 more$",
    ),
    "no tensors": ({}, rf"missing: {CONV0}, .* and \d+ more$"),
    "unexpected": ({**other_weights(), "more": torch.ones(1)}, "unexpected: 'more'$"),
    "unexpected, of another kind": ({**other_weights(), 3: [4]}, "unexpected: '3'$"),
    "a name of two lines": ({**other_weights(), "a\nb" * 99: torch.ones(1)}, r"unexpected: 'a\\nba\\n[^\n]{1,72}b'$"),
    "shape": (
        {**other_weights(), CONV0: torch.ones(9, 3, 3, 3)},
        rf"unfit: {CONV0} is \(9, 3, 3, 3\), not \(8, 3, 3, 3\)$",
    ),
    "classifier": (
        other_weights(num_classes=7),
        r"unfit: classifier.weight is \(7, 12\), not \(10, 12\), classifier.bias is",
    ),
    "both shapes": (
        {**other_weights(), CONV0: torch.ones(8), CONV1: torch.ones(())},
        rf"unfit: {CONV0} is \(8,\), not \(8, 3, 3, 3\), {CONV1} is \(\), not \(16, 8, 1, 1\)$",
    ),
    "all kinds": (
        {**without(CONV0), "more": torch.ones(()), CONV1: torch.ones(2)},
        rf"missing: {CONV0}; unexpected: 'more'; unfit: {CONV1} is \(2,\)",
    ),
    "no tensor": ({**other_weights(), CONV0: [1.0]}, f"unfit: {CONV0} is of type list, not a tensor$"),
    "integers": (
        {**other_weights(), CONV0: torch.ones(8, 3, 3, 3).int()},
        "torch.int32 on cpu that does not turn into torch.fl",
    ),
    "complex": (
        {**other_weights(), CONV0: torch.ones(8, 3, 3, 3) * 1j},
        "torch.complex64 on cpu that does not turn into",
    ),
    "sparse": ({**other_weights(), CONV0: torch.ones(8, 3, 3, 3).to_sparse()}, "that does not turn into"),
    "meta": ({**other_weights(), CONV0: torch.ones(8, 3, 3, 3, device="meta")}, "on meta that does not turn into"),
    "fraction as a count": (
        {**other_weights(), COUNTER: torch.tensor(0.5)},
        "float32 on cpu that does not turn into torch.int64",
    ),
    "twice": ({**other_weights(), f"module.{CONV0}": torch.ones(8, 3, 3, 3)}, f"'{CONV0}' under two names$"),
    "twice, in two spellings": (
        {**other_weights(), **torchvision_names(other_weights())},
        "'features.norm_final.weight' under two names$",
    ),
    "a module": (small_network(), "state_dict is of type DenseNet, but must be a dict of tensors by name$"),
    "a wrapped module": ({"model": small_network()}, "unexpected: 'model'$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_in_one_line_and_changes_nothing(case):
    weights, message = REFUSED[case]
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        load_weights(network, weights)
    assert "\n" not in str(refusal.value)
    assert unequal(network.state_dict(), before) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_named():
    """Even its shape is an error."""
    weights = {**other_weights(), CONV0: torch.nested.nested_tensor([torch.ones(3)])}
    with pytest.raises(ValueError, match=f"unfit: {CONV0} is a nested tensor that does not turn into torch.float32$"):
        load_weights(small_network(), weights)


def test_a_classifier_is_all_that_may_be_left():
    for case in ("missing", "unexpected", "shape", "all kinds"):
        weights, message = REFUSED[case]
        with pytest.raises(ValueError, match=message):
            load_weights(small_network(num_classes=7), weights, replace_classifier=True)
