"""The flags of `demo.py benchmark`."""

from pathlib import Path
from typing import Annotated, Literal

from commands.line.flags import Settings, flag, settings
from commands.line.types import Range
from commands.networks import NetworkSettings, check_network, image_size_of
from commands.settings import (
    DEBUG_HELP,
    THREADS_HELP,
    BatchSize,
    Depth,
    DropRate,
    GrowthRate,
    ImageSize,
    NetworkName,
    Precision,
    Threads,
)

GpuName = Literal["h100", "a100", "4090", "3090", "t4"]  # keys of commands.benchmark.gpus.GPUS


@settings
class BenchmarkSettings(Settings):
    """Flags of the command benchmark."""

    what: Literal["step", "images"] = flag(
        '"step": memory and time of a training step. "images": how fast images are prepared and read, against a loop '
        "over torchvision's transforms; only rounds, threads and csv may be given as well.",
        default="step",
    )
    network: NetworkName = flag("Network, as in train.", default="densenet_bc")
    depth: Depth = flag("Weighted layers L of the network.", default=100)
    growth_rate: GrowthRate = flag("Channels k that each layer adds.", default=12)
    batch_size: BatchSize = flag("Images in a step.", default=64)
    image_size: ImageSize | None = flag(
        "Height and width of the images. None: 224 for densenet121 and the other ImageNet networks, 32 for the rest. "
        "Above 64, densenet_bc and densenet begin with the stem of the ImageNet networks.",
        default=None,
    )
    drop_rate: DropRate = flag("Dropout after each 3x3 convolution of a dense layer.", default=0.0)
    precision: Precision = flag("As in train; tf32 and fp16 need a GPU.", default="fp32")
    memory_format: Literal["channels_last", "contiguous"] = flag(
        "Memory format of all variants; naive is measured in both, and ratios refer to the faster one.",
        default="channels_last",
    )
    threads: Threads | None = flag(THREADS_HELP, default=None)
    rounds: Annotated[int, Range(0, 1000)] = flag(
        "How often each variant is timed, also at each depth of the plot; variants take turns. 0: measure memory only.",
        default=5,
    )
    simulate: GpuName | None = flag(
        "In place of the table, print a prediction for this GPU, which need not be there: bytes moved, launches, peak "
        "memory, and the time of a step, launched from Python and in a CUDA graph. A model computes it, and nobody "
        "measured it. Only flags of the network, batch_size, precision, memory_format and csv may be given as well.",
        default=None,
    )
    compile: bool = flag(
        "Also measure torch.compile of the naive network with an activation memory budget of one half. Compiling takes "
        "minutes, and needs a C++ compiler.",
        default=False,
    )
    budget_gb: Annotated[float, Range(0, open_low=True)] | None = flag(
        "In place of the table, print what fits into this many GB of 10^9 bytes with each strategy: the largest batch "
        "for the given network, and the deepest network for the given batch. If the network is one of the ImageNet "
        "networks, print which of them fit.",
        default=None,
    )
    plot: Path | None = flag(
        "Also measure memory and time against depth, with at most 16 images in a step, and draw memory into this new "
        "file, a PNG.",
        default=None,
    )
    depths: tuple[Depth, ...] | None = flag(
        "Depths in the plot. None: 40, 100, 190 and 250, or 22, 40, 70 and 100 for densenet.", default=None
    )
    csv: Path | None = flag("Also write the table to this new file.", default=None)
    debug: bool = flag(DEBUG_HELP, default=False)

    @property
    def network_settings(self) -> NetworkSettings:
        """The network whose step is measured. Its dropout, if any, is where torchvision has it.

        Raises:
            UserError: If there is no such network, or it cannot read images of that size.
        """
        check_network(self.network, depth=self.depth, growth_rate=self.growth_rate)
        return NetworkSettings(
            network=self.network,
            depth=self.depth,
            growth_rate=self.growth_rate,
            image_size=image_size_of(self.network, image_size=self.image_size),
            drop_rate=self.drop_rate,
            drop_where="layers",
        )
