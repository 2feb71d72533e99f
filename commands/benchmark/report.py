"""Measure what the flags of the benchmark ask for, print the tables, and write the files."""

from collections.abc import Sequence

import torch

from commands.benchmark.budget import find_what_fits
from commands.benchmark.comparison import compare
from commands.benchmark.depths import draw_depths, measure_by_depth
from commands.benchmark.gpus import GPUS
from commands.benchmark.images import measure_images
from commands.benchmark.predictions import predict_all
from commands.benchmark.settings import BenchmarkSettings
from commands.benchmark.step import Case
from commands.benchmark.variants import all_variants
from commands.memory import GB
from commands.networks import NetworkSettings
from commands.outputs import print_and_write
from train import cpu_contention, runtime


def report_step(settings: BenchmarkSettings, network: NetworkSettings, depths: Sequence[int]) -> None:
    """Compare the ways to train a network, or find what fits into a budget; then measure against depth for a plot.

    Args:
        settings: Flags of the command.
        network: The network.
        depths: Depths of the plot, if there is one.

    Raises:
        UserError: If the device cannot compute in the precision that is asked for.
        RunError: If a strategy does not agree with naive, memory runs out, or a file cannot be written.
    """
    runtime.use_threads(settings.threads)
    runtime.be_deterministic()
    runtime.use_precision(settings.precision)
    case = Case(network, settings.batch_size, settings.precision, runtime.pick_device())
    case.require_precision()
    variants = all_variants(network, memory_format=settings.memory_format, with_compile=settings.compile)
    with cpu_contention.warn_if_busy(case.device):
        if settings.budget_gb is None:
            result = compare(variants, case, rounds=settings.rounds)
            print_and_write(result.as_text().split("\n"), {settings.csv: result.as_csv()})
        else:
            fitting = find_what_fits(variants, case, budget=settings.budget_gb * GB)
            print_and_write(fitting.as_text().split("\n"), {settings.csv: fitting.as_csv()})
    if settings.plot:
        by_depth = measure_by_depth(variants, case, depths=depths, rounds=settings.rounds)
        print_and_write(["", *by_depth.as_text().split("\n")], {settings.plot: draw_depths(by_depth)})


def report_prediction(settings: BenchmarkSettings, network: NetworkSettings) -> None:
    """Predict a step on the GPU that `--simulate` names.

    Args:
        settings: Flags of the command.
        network: The network.

    Raises:
        RunError: If a file cannot be written.
    """
    assert settings.simulate is not None
    runtime.use_precision(settings.precision)
    case = Case(network, settings.batch_size, settings.precision, torch.device("cpu"))
    variants = all_variants(network, memory_format=settings.memory_format, with_compile=False)
    result = predict_all(variants, case, GPUS[settings.simulate])
    print_and_write(result.as_text().split("\n"), {settings.csv: result.as_csv()})


def report_images(settings: BenchmarkSettings) -> None:
    """Time how fast images are prepared and read.

    Raises:
        UserError: If there are no rounds.
        RunError: If a file cannot be written.
    """
    runtime.use_threads(settings.threads)
    result = measure_images(rounds=settings.rounds)
    print_and_write(result.as_text().split("\n"), {settings.csv: result.as_csv()})
