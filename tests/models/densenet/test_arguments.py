"""Arguments of networks: their order, their ranges, and what a refusal names."""

import inspect
import re
from math import nan

import pytest
import torch
from torch import nn

from models import DEPTH_RULES, STRATEGIES, DenseNet, densenet_bc, densenet_plain
from models.layers import DenseLayer


def test_constructor_takes_the_arguments_of_earlier_code_in_their_order():
    *parameters, where, channels = inspect.signature(DenseNet).parameters.values()
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
    assert (where.name, where.default, where.kind) == ("drop_where", "layers", where.KEYWORD_ONLY)
    assert (channels.name, channels.default, channels.kind) == ("in_channels", 3, channels.KEYWORD_ONLY)


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


@pytest.mark.parametrize(
    ("name", "build", "smallest", "step", "formula"),
    [
        ("densenet_bc", densenet_bc, 10, 6, "6m + 4 with m >= 1"),
        ("densenet_plain", densenet_plain, 7, 3, "3m + 4 with m >= 1"),
    ],
)
def test_a_depth_rule_says_what_its_network_accepts(name, build, smallest, step, formula):
    rule = DEPTH_RULES[name]
    assert (rule.smallest, rule.step, rule.formula) == (smallest, step, formula)
    assert rule.block_config(smallest + 2 * step) == (3, 3, 3)
    weighted = [module for module in build(smallest + step).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weighted) == smallest + step
    for depth in (smallest - step, smallest + 1):
        with pytest.raises(ValueError, match=re.escape(formula)):
            rule.block_config(depth)
