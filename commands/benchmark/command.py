"""`demo.py benchmark`: its help, and the checks of its flags."""

from commands.benchmark.settings import BenchmarkSettings
from commands.line.flags import Command
from commands.networks import depths_of_plot, with_flags_of_network
from commands.outputs import require_new
from commands.requirements import require_compiler
from train.errors import UserError

FLAGS_OF_IMAGES = ("what", "rounds", "threads", "csv", "debug")  # that --what images takes


def benchmark(settings: BenchmarkSettings) -> None:
    """Measure memory and time of a training step, with our strategies and with other ways to train the same network.

    Runs on the first visible GPU, or on the CPU if there is none. A step is forward, loss and backward of a synthetic
    batch of 10 classes. Our strategies are compared with torchvision's DenseNet (memory_efficient False and True),
    where it can be the same network, and with a checkpoint around each dense layer and transition. Before anything is
    measured, our strategies must agree with naive in loss, gradients and running statistics; otherwise the exit code is
    1. The defaults take one to two minutes on two CPU cores. On such a machine, the ImageNet networks need a smaller
    --batch_size.
    """
    network = settings.network_settings
    depths = depths_of_plot(settings.network, depths=settings.depths, is_drawn=settings.plot is not None)
    require_new(settings.plot, flag="plot", suffix=".png")
    require_new(settings.csv, flag="csv", suffix=".csv")
    if settings.compile:
        require_compiler()
    if settings.what == "images":
        _require_flags_of_images(settings)
    from commands.benchmark.report import report_images, report_step  # torch takes seconds to import

    if settings.what == "images":
        report_images(settings)
    else:
        report_step(settings, network, depths)


def _require_flags_of_images(settings: BenchmarkSettings) -> None:
    for name, default in settings.defaults().items():
        value = getattr(settings, name)
        if name not in FLAGS_OF_IMAGES and value != default:
            raise UserError(f"--{name} is {value}, but --what images measures no network; leave it out")


COMMAND = Command(BenchmarkSettings, benchmark, complete=with_flags_of_network)
