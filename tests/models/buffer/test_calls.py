"""Modules are called, in place of the feature buffer, where no gradient is wanted and where hooks ask for it."""

import re

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from tests.support.network_pairs import IMAGENET, LAYER, OF_ALL_KINDS, assert_same_training, doubles, naive_and_buffer
from tests.support.tensor_measurements import train, unequal


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_modules_are_called(context, blocks_over_buffers):
    naive, buffer = naive_and_buffer()
    with context():
        assert torch.equal(naive(doubles()), buffer(doubles()))
    assert unequal(naive.state_dict(), buffer.state_dict()) == []
    assert blocks_over_buffers == []


@OF_ALL_KINDS
def test_in_eval_mode_modules_are_called(config, blocks_over_buffers):
    networks = naive_and_buffer(**({"drop_rate": 0.2} | config))
    expected, actual = (train(network.eval(), doubles()) for network in networks)
    for left, right in zip(expected, actual, strict=True):
        assert unequal(left, right) == []
    assert blocks_over_buffers == []


class Hook:
    """Count calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args: object) -> None:
        self.calls += 1


HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "forward pre": nn.Module.register_forward_pre_hook,
    "full backward": nn.Module.register_full_backward_hook,
    "full backward pre": nn.Module.register_full_backward_pre_hook,
}


HOOKED = {
    f"{LAYER}.conv2": "denselayer2.conv2 (Conv2d)",
    f"{LAYER}.norm2": "denselayer2.norm2 (BatchNorm2d)",
    LAYER: "denselayer2 (DenseLayer)",
    "features.denseblock1": "DenseBlock",
    "features.transition1": "Transition",
    "features.transition1.pool": "pool (AvgPool2d)",
}


def fits(kind: str, name: str) -> bool:
    """Layers take lists, and backward hooks need tensors."""
    return kind.startswith("forward") or name != LAYER


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in HOOKS for name in HOOKED if fits(kind, name)])
def test_hooks_in_a_block_are_called_once_a_step(kind, name, blocks_over_buffers):
    networks, hook = naive_and_buffer(), Hook()
    HOOKS[kind](networks[1].get_submodule(name), hook)
    with pytest.warns(UserWarning, match=re.escape(f"keeps more memory: {HOOKED[name]} has hooks")):
        assert_same_training(*networks, doubles())
    assert hook.calls == 3
    first, second = networks[1].features.denseblock1, networks[1].features.denseblock2
    assert set(blocks_over_buffers) == ({second} if name.startswith(LAYER) else {first, second})


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_features_are_called_once_a_step_and_need_no_plain_modules(kind, blocks_over_buffers):
    networks, hook = naive_and_buffer(), Hook()
    HOOKS[kind](networks[1].features, hook)
    assert_same_training(*networks, doubles())
    assert hook.calls == 3
    assert len(blocks_over_buffers) == 6


@pytest.mark.parametrize("name", ["conv0", "norm0", "relu0", "pool0"])
def test_hooks_of_the_stem_are_called_once_a_step(name, blocks_over_buffers):
    networks, hook = naive_and_buffer(**IMAGENET), Hook()
    networks[1].features.get_submodule(name).register_forward_hook(hook)
    assert_same_training(*networks, doubles(side=32))
    assert hook.calls == 3
    assert len(blocks_over_buffers) == 6


def test_hooks_of_all_modules_are_called_once_a_step(blocks_over_buffers):
    networks, modules = naive_and_buffer(), []
    handle = register_module_forward_hook(lambda module, inputs, outputs: modules.append(module))
    try:
        with pytest.warns(UserWarning, match="there are hooks for all modules"):
            networks[1](doubles()).sum().backward()
    finally:
        handle.remove()
    called = [module for name, module in networks[1].named_modules() if name]
    assert sorted(map(id, modules)) == sorted(map(id, [*called, networks[1]]))
    assert blocks_over_buffers == []
