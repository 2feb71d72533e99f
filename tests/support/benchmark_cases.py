"""Cases and variants for tests of the benchmark, and a reader for its table."""

import re

import torch

import demo
from commands.benchmark.step import CLASSES, Case
from commands.benchmark.variants import all_variants
from models import STRATEGIES

CPU = torch.device("cpu")
SMALL = Case("densenet_bc", 10, 2, batch_size=4, image_size=8, drop_rate=0, precision="fp32", device=CPU)
TINY = ["--depth=10", "--growth_rate=2", "--batch_size=4", "--image_size=8"]
BASELINES = ["torchvision", "torchvision memory_efficient", "whole layers checkpointed"]


def build(strategy, **settings):
    """Build a network as the command does."""
    return demo._build({**settings, "efficient": strategy}, num_classes=CLASSES, drop_where="layers")


def variants(build=build, network="densenet_bc"):
    return all_variants(build, STRATEGIES, network=network, memory_format="channels_last", with_compile=False)


def variant(name):
    return next(found for found in variants() if found.name == name)


def rows_of(output):
    return [
        re.split(r"\s{2,}", line) for line in output.splitlines() if re.search(r"  (channels_last|contiguous)  ", line)
    ]
