"""The check that our strategies train as the naive network does."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from commands.benchmark.agreement import agreement_in_fp64, forward_difference, gradient_difference, largest_difference
from commands.benchmark.comparison import compare
from commands.benchmark.variants import build_ours
from models import STRATEGIES
from models import recompute as recompute_module
from tests.support.application import run_here
from tests.support.benchmark_cases import SMALL, TINY, small, variants
from train.errors import RunError


def test_our_strategies_agree_in_fp64():
    agreement = agreement_in_fp64(variants(), SMALL)
    assert [difference.variant for difference in agreement.differences] == list(STRATEGIES[1:])
    assert agreement.differences[0].value == 0  # checkpoint gives the same bits
    agreement.require()


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "densenet", "depth": 13},
        {"network": "densenet", "image_size": 72},
        {"image_size": 72},
        {"network": "densenet121", "depth": 121, "growth_rate": 32, "image_size": 64, "batch_size": 2},
    ],
)
def test_our_strategies_agree_in_fp64_on_other_networks(changes):
    case = small(**changes)
    agreement_in_fp64(variants(network=case.network), case).require()


def test_a_strategy_that_updates_statistics_twice_is_caught_and_the_exit_code_is_1(monkeypatch, capsys):
    monkeypatch.setattr(recompute_module, "FrozenRunningStatistics", lambda norm: nullcontext())
    assert run_here("benchmark", *TINY) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        r"demo\.py benchmark: error: checkpoint does not agree with naive: features\.\S+\.norm1\.num_batches_tracked "
        r"differs by 1\.0e\+00 in fp64, batch 4, allowed is 1\.0e-09\n",
        output.err,
    )


def test_a_strategy_with_one_slightly_wrong_gradient_is_caught():
    def other(strategy, network):
        network = build_ours("naive", network)
        if strategy == "buffer":
            network.features.transition1.norm.weight.register_hook(lambda gradient: gradient * (1 + 1e-6))
        return network

    agreement = agreement_in_fp64(variants(build=other), SMALL)
    assert [difference.value == 0 for difference in agreement.differences] == [True, False, True, True]
    with pytest.raises(
        RunError, match=r"buffer .* gradient of features\.transition1\.norm\.weight differs by 1\.0e-06"
    ):
        agreement.require()


def test_a_strategy_that_is_wrong_in_the_measured_precision_only_is_caught():
    class Wrong(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def load_state_dict(self, *args, **kwargs):
            return self.network.load_state_dict(*args, **kwargs)

        def named_parameters(self, *args, **kwargs):
            return self.network.named_parameters(*args, **kwargs)

        def named_buffers(self, *args, **kwargs):
            return self.network.named_buffers(*args, **kwargs)

        def forward(self, images):
            return self.network(images if images.dtype == torch.float64 else images.flip(3))

    def other(strategy, network):
        network = build_ours("naive", network)
        return Wrong(network) if strategy == "buffer" else network

    with pytest.raises(RunError, match=r"buffer does not agree with naive: the loss differs by \S+ in fp32, batch 4"):
        compare(variants(build=other), SMALL, rounds=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_lost_in_the_measured_precision_only_is_caught(precision):
    def other(strategy, network):
        network = build_ours("naive", network)
        if strategy == "buffer":
            for weight in network.parameters():
                weight.register_hook(lambda gradient: gradient * (gradient.dtype == torch.float64))
        return network

    with pytest.raises(RunError, match=f"buffer .* the whole gradient differs by 1.0e.00 in {precision}, batch 4"):
        compare(variants(build=other), small(precision=precision), rounds=0)


def test_differences_are_relative_and_numbers_that_are_none_differ_infinitely():
    expected = {"loss": torch.tensor(2.0), "gradient of w": torch.tensor([3.0, 4.0]), "count": torch.tensor(1)}
    actual = {"loss": torch.tensor(2.5), "gradient of w": torch.tensor([3.0, 2.0]), "count": torch.tensor(1)}
    assert largest_difference("v", expected, actual).value == 2 / 4
    assert largest_difference("v", expected, actual).where == "gradient of w"
    assert gradient_difference("v", expected, actual).value == 2 / 5
    assert forward_difference("v", expected, actual).value == 0.5 / 2
    assert forward_difference("v", expected, actual | {"count": torch.tensor(2)}).value == 1
    actual["loss"] = torch.tensor(torch.nan)
    for compared in (largest_difference, forward_difference):
        assert compared("v", expected, actual).value == torch.inf
    assert largest_difference("v", expected, expected).value == 0
