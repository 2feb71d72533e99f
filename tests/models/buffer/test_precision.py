"""With fewer bits the feature buffer errs no more than plain autograd."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.network_pairs import (
    BF16,
    DROPPING,
    FORMATS,
    IMAGENET,
    KINDS,
    PLAIN,
    SMALL,
    assert_same_training,
    relative_errors,
)
from tests.support.tensor_measurements import bytes_saved_for_backward, naive_and, random_images, record, train, unequal


@pytest.mark.parametrize("dropout", [{}, {"drop_rate": 0.2}, DROPPING], ids=["nothing", "layers", "convolutions"])
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["bottlenecks", "plain"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("precision", [nullcontext, BF16], ids=["float32", "bf16"])
def test_errors_of_fewer_bits_are_those_of_the_naive_network(precision, memory_format, config, dropout):
    config = config | dropout | {"growth_rate": 8}
    naive, buffer = (network.to(memory_format=memory_format) for network in naive_and("buffer", **config))
    images = random_images(side=12, images=6).contiguous(memory_format=memory_format)
    (truth,) = train(copy.deepcopy(naive).double(), images.double(), steps=1)
    (expected,), (actual,) = (train(network, images, steps=1, precision=precision) for network in (naive, buffer))
    # The buffer's own format is channels_last, whose norms add up in another order and with up to twice the error.
    factor, rounding = (1.5, 0) if memory_format is torch.channels_last else (3, 1e-7)
    for kind in ("gradient of images", "gradient of features", "gradient of classifier", "logits", "running"):
        error = relative_errors(expected, truth, kind)
        assert relative_errors(actual, truth, kind) < factor * error + rounding, kind
        assert 0 < error < 0.4
    assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}


@pytest.mark.parametrize("form", [*KINDS.values(), IMAGENET], ids=[*KINDS, "imagenet"])
def test_autocast_may_end_before_the_backward_pass_or_after_it(form):
    def step(of_backward: Callable[[], AbstractContextManager]) -> dict[str, Tensor]:
        network = naive_and("buffer", **({"drop_rate": 0.2} | form))[1]
        images = random_images(side=32).requires_grad_()
        with BF16():
            loss = F.cross_entropy(network(images), torch.arange(4))
        with of_backward():
            loss.backward()
        return record(network, **{"gradient of images": images.grad})

    outside, inside = step(nullcontext), step(BF16)
    assert unequal(outside, inside) == []
    assert {t.dtype for name, t in inside.items() if "gradient of " in name or "running" in name} == {torch.float32}


def test_autocast_computes_in_its_type():
    network = naive_and("buffer", **SMALL)[1]
    images = random_images(side=16)  # so that feature maps take more than the weights, which are kept in 16 bits too
    others = [images, *network.parameters()]
    kept = {}
    for name, precision in (("float32", nullcontext), ("bf16", BF16)):
        with precision():
            kept[name] = bytes_saved_for_backward(partial(network, images), without=others)
    assert kept["bf16"] < 0.7 * kept["float32"]


def test_norms_of_16_bits_are_called(blocks_over_buffers):
    naive, buffer = (network.bfloat16() for network in naive_and("buffer", **SMALL))
    images = random_images().bfloat16()
    with pytest.warns(UserWarning, match="has parameters of 16 bits"):
        assert_same_training(naive, buffer, images, tolerance=0)
    assert blocks_over_buffers == []
