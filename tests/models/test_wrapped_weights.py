"""Weights as wrappers and training programs save them: prefixes, counters, averages, and dicts inside dicts."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models import load_weights, weight_places
from tests.support.perturbed_weights import other_weights, small_network, with_dotted_names, with_prefixes
from tests.support.tensor_measurements import unequal

ONLY = "the weights do not fit the network; "


def network():
    """A network with the weights of `other_weights()`, loaded by torch itself."""
    loaded = small_network()
    loaded.load_state_dict(other_weights())
    return loaded


def averaged() -> dict:
    """The state that torch's AveragedModel saves of the same network, after one more update by another one."""
    model = AveragedModel(small_network(), use_buffers=True)
    model.update_parameters(network())
    return model.state_dict()


def lightning(weights: dict) -> dict:
    """A checkpoint of Lightning."""
    return {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": with_prefixes("model.")(weights),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
    }


def references(weights: dict) -> dict:
    """A checkpoint of torchvision's training script, with --model-ema."""
    ema = {
        "n_averaged": torch.tensor(3),
        **with_prefixes("module.")({name: value + 1 for name, value in weights.items()}),
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": weights, "optimizer": optimizer, "lr_scheduler": {"last_epoch": 3}, "epoch": 3, "model_ema": ema}


def in_parts(weights: dict) -> dict:
    """The names of a network whose blocks are wrapped one by one, so that their activations are checkpointed."""
    return {name.replace("denseblock1.", "denseblock1._checkpoint_wrapped_module."): weights[name] for name in weights}


FORMS = {
    "AveragedModel": lambda weights: AveragedModel(network()).state_dict(),
    "AveragedModel of DataParallel": lambda weights: AveragedModel(nn.DataParallel(network())).state_dict(),
    "DataParallel": lambda weights: nn.DataParallel(network()).state_dict(),
    "compiled, in AveragedModel": lambda weights: {
        "n_averaged": torch.tensor(1),
        **with_prefixes("module._orig_mod.")(weights),
    },
    "Lightning": lightning,
    "Lightning of a compiled network": lambda weights: lightning(with_prefixes("_orig_mod.")(weights)),
    "torchvision's script": references,
    "a backbone": with_prefixes("backbone."),
    "a prefix inside a prefix": with_prefixes("net.module.encoder.0."),
    "a prefix, and torchvision's old names": lambda weights: with_prefixes("model.")(
        {
            **{name: value for name, value in weights.items() if "num_batches_tracked" in name},
            **with_dotted_names(weights),
        }
    ),
    "blocks wrapped": in_parts,
    "blocks wrapped, and a prefix": lambda weights: with_prefixes("model.")(in_parts(weights)),
    "any key": lambda weights: {"net": weights, "acc": 93.1, "epoch": 7},
    "a key inside a key": lambda weights: {"state": {"network": weights}, "step": 7},
    "timm": lambda weights: {"epoch": 2, "arch": "densenet121", "state_dict": weights, "version": 2, "metric": 0.5},
    "numbers beside the weights": lambda weights: {
        **{"epoch": 3, "best": 0.5, "note": "fine", "nothing": None, 3: 4},
        **weights,
        **{"step": torch.tensor(5), "initted": torch.tensor(True)},
    },
    "gradients by name": lambda weights: {
        "weights": weights,
        "momentum": {name: value for name, value in weights.items() if "running" not in name and "num_" not in name},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_wrapper_is_taken_off(form):
    weights, loaded = other_weights(), small_network()
    assert unequal(loaded.state_dict(), weights) != []
    assert load_weights(loaded, FORMS[form](weights)) == []
    assert unequal(loaded.state_dict(), weights) == []


def test_a_wrapper_of_weights_without_classifier_is_taken_off():
    """All names then begin with features, which is no wrapper."""
    headless = {name: value for name, value in other_weights().items() if name.startswith("features.")}
    for weights in (headless, with_prefixes("model.")(headless)):
        loaded = small_network()
        assert load_weights(loaded, weights, replace_classifier=True) == ["classifier.weight", "classifier.bias"]
        assert unequal(loaded.features.state_dict(), network().features.state_dict()) == []


EMA = {name: value + 1 for name, value in other_weights().items()}
BOTH = {
    "timm": ({"state_dict": other_weights(), "state_dict_ema": EMA}, ["state_dict", "state_dict_ema"]),
    "the average first": ({"ema": with_prefixes("module.")(EMA), "net": other_weights()}, ["net", "ema"]),
    "torchvision's script": (references(other_weights()), ["model", "model_ema"]),
    "old names without counters": ({"model": with_dotted_names(other_weights()), "ema": EMA}, ["model", "ema"]),
    "in one dict": (
        {
            **with_prefixes("ema_model.module.")(EMA),
            "ema_model.n_averaged": torch.tensor(2),
            **with_prefixes("model.")(other_weights()),
        },
        ["model", "ema_model"],
    ),
    "Lightning": (
        {"state_dict": {**with_prefixes("net.")(other_weights()), **with_prefixes("swa.")(EMA)}},
        ["state_dict.net", "state_dict.swa"],
    ),
    "a run": ({"network": EMA, "chosen": other_weights()}, ["chosen", "network"]),
}


@pytest.mark.parametrize("form", BOTH)
def test_of_several_weights_those_are_taken_that_are_not_averaged_and_all_are_named(form):
    content, places = BOTH[form]
    loaded = small_network()
    left = load_weights(loaded, content)
    assert left == ([name for name in other_weights() if "num_batches" in name] if form.startswith("old") else [])
    assert unequal(loaded.state_dict(), other_weights()) == left
    assert weight_places(loaded, content) == places


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "averaged_model", "module"])
def test_averaged_weights_are_taken_if_there_are_no_others(key):
    loaded = small_network()
    assert load_weights(loaded, {key: averaged(), "epoch": 1}) == []
    # The average after the first update is the network that was given.
    torch.testing.assert_close(loaded.state_dict(), other_weights(), rtol=0, atol=0)


LOSS = torch.ones(10)
REFUSED = {
    "two networks": (
        {**with_prefixes("student.")(other_weights()), **with_prefixes("teacher.")(EMA)},
        "the weights are there under 'student' and 'teacher'; save those that are wanted alone$",
    ),
    "two keys": ({"best": other_weights(), "last": EMA}, "the weights are there under 'best' and 'last'; "),
    "another module": (
        {"state_dict": {**with_prefixes("model.")(other_weights()), "criterion.weight": LOSS}},
        f"{ONLY}unexpected: 'criterion.weight'$",
    ),
    "a weight of no dimension": ({**other_weights(), "scale": torch.tensor(0.5)}, f"{ONLY}unexpected: 'scale'$"),
    "a counter that is none": ({**averaged(), "n_averaged": torch.ones(1).long()}, f"{ONLY}unexpected: 'n_averaged'$"),
    "a prefix on all but one": (
        {name if name == "classifier.bias" else f"model.{name}": value for name, value in other_weights().items()},
        "the names of the weights begin with 'model.', but not 'classifier.bias'$",
    ),
    "another network under a key": (
        {"model": {"fc.weight": LOSS, "fc.bias": LOSS}},
        "unexpected: 'fc.weight', 'fc.bias'$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_wrapper_is_refused_by_name(case):
    content, message = REFUSED[case]
    loaded = small_network()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        load_weights(loaded, content)
    assert "\n" not in str(refusal.value)
    assert unequal(loaded.state_dict(), before) == []


def test_a_dict_that_holds_itself_is_searched_once():
    content = {"model": other_weights()}
    content["self"] = content["model"]["self"] = content
    with pytest.raises(ValueError, match=r"unexpected: 'self'$"):
        load_weights(small_network(), content)
    del content["model"]["self"]
    assert load_weights(small_network(), content) == []
