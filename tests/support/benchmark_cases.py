"""Cases and variants for tests of the benchmark, and a reader for its table."""

import re
from dataclasses import replace
from functools import partial

import torch

from commands.benchmark.step import Case
from commands.benchmark.variants import all_variants
from commands.networks import NetworkSettings

CPU = torch.device("cpu")
NETWORK = NetworkSettings("densenet_bc", 10, 2, image_size=8, drop_where="layers")
TINY = ["--depth=10", "--growth_rate=2", "--batch_size=4", "--image_size=8"]
BASELINES = ["torchvision", "torchvision memory_efficient", "whole layers checkpointed"]


def small(*, batch_size=4, precision="fp32", **of_network):
    """The small case with changes of its network, its batch or its precision."""
    return Case(replace(NETWORK, **of_network), batch_size, precision, CPU)


def variants(network=NETWORK, build=None):
    """All variants of a network; `build` replaces the function that builds our strategies from name and network."""
    found = all_variants(network, memory_format="channels_last", with_compile=False)
    if build is None:
        return found
    return [replace(one, build=partial(build, one.name)) if one.is_ours else one for one in found]


SMALL = small()


def variant(name):
    return next(found for found in variants() if found.name == name)


def rows_of(output):
    return [
        re.split(r"\s{2,}", line) for line in output.splitlines() if re.search(r"  (channels_last|contiguous)  ", line)
    ]
