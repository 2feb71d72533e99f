"""`demo.py benchmark`: its help, and the checks of its flags."""

import typing
from collections.abc import Collection

from commands.benchmark.gpus import GPUS
from commands.benchmark.settings import BenchmarkSettings
from commands.line.flags import Command
from commands.networks import depths_of_plot, with_flags_of_network
from commands.outputs import require_new
from commands.requirements import require_compiler
from commands.settings import Precision
from train.errors import UserError

# All flags that --what images and --simulate take.
FLAGS_OF_IMAGES = ("what", "rounds", "threads", "csv", "debug")
FLAGS_OF_NETWORK = ("network", "depth", "growth_rate", "image_size", "drop_rate")
FLAGS_OF_SIMULATION = ("simulate", *FLAGS_OF_NETWORK, "batch_size", "precision", "memory_format", "csv", "debug")


def benchmark(settings: BenchmarkSettings) -> None:
    """Measure memory and time of a training step, with our strategies and with other ways to train the same network.

    Runs on the first visible GPU, or on the CPU if there is none. A step is forward, loss and backward of a synthetic
    batch of 10 classes. Our strategies are compared with torchvision's DenseNet (memory_efficient False and True),
    where it can be the same network, and with a checkpoint around each dense layer and transition. Before anything is
    measured, our strategies must agree with naive in loss, gradients and running statistics; otherwise the exit code is
    1. With --simulate, a model predicts the step on a GPU that need not be there. The defaults take one to two minutes
    on two CPU cores. On such a machine, the ImageNet networks need a smaller --batch_size.
    """
    network = settings.network_settings
    depths = depths_of_plot(settings.network, depths=settings.depths, is_drawn=settings.plot is not None)
    require_new(settings.plot, flag="plot", suffix=".png")
    require_new(settings.csv, flag="csv", suffix=".csv")
    if settings.compile:
        require_compiler()
    if settings.what == "images":
        _require_only(FLAGS_OF_IMAGES, settings, "--what images measures no network")
    elif settings.simulate is not None:
        _require_only(FLAGS_OF_SIMULATION, settings, "--simulate measures nothing")
        _require_precision(settings.precision, settings.simulate)
    from commands.benchmark.report import report_images, report_prediction, report_step  # torch takes seconds to import

    if settings.what == "images":
        report_images(settings)
    elif settings.simulate is not None:
        report_prediction(settings, network)
    else:
        report_step(settings, network, depths)


def _require_only(allowed: Collection[str], settings: BenchmarkSettings, reason: str) -> None:
    for name, default in settings.defaults().items():
        value = getattr(settings, name)
        if name not in allowed and value != default:
            raise UserError(f"--{name} is {value}, but {reason}; leave it out")


def _require_precision(precision: str, gpu: str) -> None:
    if GPUS[gpu].rate(precision) is None:
        possible = " | ".join(other for other in typing.get_args(Precision) if GPUS[gpu].rate(other) is not None)
        raise UserError(f"--precision is {precision!r}, but a {GPUS[gpu].title} does not have it; it has {possible}")


COMMAND = Command(BenchmarkSettings, benchmark, complete=with_flags_of_network)
