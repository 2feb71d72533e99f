"""The settings of a training run, and flags that several commands have in common."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from commands.line.flags import Role, Settings, flag, parse_recorded, settings
from commands.line.types import Addresses, Fractions, Names, Range
from commands.networks import ANY_DEPTH, NETWORKS, NetworkSettings, check_network, image_size_of
from commands.recipes import RECIPES, RULE
from commands.tables import plain
from data.datasets import DATASETS, require_channels
from train.run.identity import RunIdentity

DatasetName = Annotated[str, Names(tuple(DATASETS), rule=" | ".join(DATASETS))]
Strategy = Literal["naive", "checkpoint", "buffer", "buffer_fast", "buffer_small"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
NetworkName = Annotated[str, Names(tuple(NETWORKS), rule=" | ".join(NETWORKS))]
Depth = Annotated[int, ANY_DEPTH]
GrowthRate = Annotated[int, Range(1, 10_000)]
ImageSize = Annotated[int, Range(8, 1024)]
Channels = Annotated[int, Range(1, 1000)]
BatchSize = Annotated[int, Range(1, 1_000_000)]
DropRate = Annotated[float, Range(0, 1, open_high=True)]
MixingParameter = Annotated[float, Range(0, 100)]
Threads = Annotated[int, Range(1, 1024)]
DataUrl = Annotated[str, Addresses()]
Seed = Annotated[int, Range(0, 2**63 - 1)]

# Values of --efficient whose blocks run over a feature buffer.
BUFFERS = (True, "buffer", "buffer_fast", "buffer_small")
THREADS_HELP = "CPU threads for computation. None: torch decides."
DEBUG_HELP = "Show where in the program an error came from."
CHANNELS_HELP = (
    'Channels of the images: 3, or for "folder" and "digits" also 1, which turns colours into grey. Images of a folder '
    "in .npy files may have any number; name it here."
)
DOWNLOAD_HELP = "Download missing files of the data set."
DATA_URL_HELP = (
    "Folders on other servers that have the data set's files, to be tried first; several with commas between them. "
    "Every file is verified by its md5 digest, so that any server will do."
)


@settings
class TrainSettings(Settings):
    """Settings of a training run."""

    save: Path = flag(
        "Folder for logs and weights. It is created if it does not exist, and must hold no other run.",
        role=Role.FREE | Role.NOT_COMPARED,
    )
    data: Path | None = flag(
        'Folder of the data set\'s files, or of its downloaded archive. "digits" needs none.',
        default=None,
        role=Role.FREE | Role.CHOSEN | Role.NOT_COMPARED,
    )
    dataset: DatasetName = flag(
        'Images to train on. "digits" are scikit-learn\'s 1,797 handwritten digits, enlarged to 32x32. "folder" are '
        "your own, in train/CLASS/ and test/CLASS/ or val/CLASS/ below --data.",
        default="cifar10",
        role=Role.NOT_COMPARED,
    )
    image_size: ImageSize | None = flag(
        'Height and width to which images of "folder" are resized. None: 224 for densenet121 and the other ImageNet '
        "networks, 32 for the rest.",
        default=None,
        role=Role.CHOSEN,
    )
    in_channels: Channels = flag(CHANNELS_HELP, default=3)
    config: Path | None = flag(
        "Take the flags of another run from this file, its config.json, its seed and all else that it has chosen among "
        "them; flags that are given as well take precedence. Not taken are save, data, seeds, download, data_url, "
        "checkpoint_minutes, tensorboard, resume and debug.",
        default=None,
        role=Role.SHORTHAND | Role.FREE | Role.NOT_COMPARED,
    )
    recipe: Annotated[str, Names(RECIPES, rule=RULE)] | None = flag(
        'A cell of the paper\'s table, named by network and data, with "+" for augmentation: all flags that the paper '
        'fixes. "modern" stands for today\'s usual augmentation, labels and schedule on any data, and "modern-" before '
        "a cell puts them in place of the paper's. Flags that are given as well take precedence.",
        default=None,
    )
    network: NetworkName = flag(
        '"densenet_bc" and "densenet" are the paper\'s networks for small images, with and without bottlenecks and '
        "compression; above 64 pixels they begin with the stem of the ImageNet networks. The others are the ImageNet "
        "networks, each with its own depth and growth rate.",
        default="densenet_bc",
    )
    depth: Depth = flag("Weighted layers L of the network.", default=40, role=Role.NOT_COMPARED)
    growth_rate: GrowthRate = flag("Channels k that each layer adds.", default=12, role=Role.NOT_COMPARED)
    efficient: bool | Strategy = flag(
        'How the backward pass gets the feature maps it needs. True or "buffer" keeps one copy of the feature maps of '
        'each block, mostly in about a tenth of the memory; "buffer_fast" is faster and takes about twice that memory; '
        '"buffer_small" takes the least memory, and a little more time. All three give the results of False or '
        '"naive", which keeps everything, up to rounding; "checkpoint" gives them to the last bit, and takes much more '
        "memory and time.",
        default=True,
        role=Role.FREE,
    )
    drop_rate: DropRate = flag(
        "Dropout after every convolution except the first. The paper uses 0.2 without augmentation.", default=0.0
    )
    init_weights: Path | None = flag(
        "Start from the weights in this file: of a run of this program, of torchvision, timm, MONAI, pytorchcv, "
        "andreasveit/densenet-pytorch or earlier efficient DenseNets. A classifier for other classes is left out.",
        default=None,
        role=Role.FILE_NAME,
    )
    n_epochs: Annotated[int, Range(1, 1_000_000)] = flag(
        "Epochs of the whole run.", default=300, role=Role.GROWING | Role.NOT_COMPARED
    )
    batch_size: BatchSize = flag("Images in a step, on all devices and in all processes together.", default=256)
    accum_steps: Annotated[int, Range(1, 1_000_000)] = flag(
        "Split each batch into this many micro-batches and accumulate their gradients, which takes less memory. Each "
        "micro-batch is normalised with its own statistics.",
        default=1,
    )
    lr: Annotated[float, Range(0, open_low=True)] = flag(
        "Initial learning rate. The paper uses 0.1 with batches of 64.", default=0.1
    )
    lr_schedule: Literal["step", "cosine"] = flag(
        '"step" multiplies the learning rate by --lr_factor at each of --lr_milestones; "cosine" lets it fall along '
        "half a cosine.",
        default="step",
    )
    lr_milestones: Fractions = flag(
        "Fractions of all epochs after which the learning rate drops, as in 0.3,0.6,0.8.", default="0.5,0.75"
    )
    lr_factor: Annotated[float, Range(0, 1, open_low=True)] = flag(
        "What the learning rate is multiplied by at a milestone.", default=0.1
    )
    warmup_epochs: Annotated[int, Range(0, 1_000_000)] = flag(
        "Let the learning rate grow linearly over this many epochs at the beginning.", default=0
    )
    momentum: Annotated[float, Range(0, 1, open_high=True)] = flag("Nesterov momentum.", default=0.9)
    wd: Annotated[float, Range(0)] = flag("Weight decay.", default=1e-4)
    decay_norms: bool = flag(
        "Let weight decay act on all parameters, as in the paper. False: not on weights of norm layers, nor on biases.",
        default=True,
    )
    clip_grad: Annotated[float, Range(0, open_low=True)] | None = flag(
        "Largest norm of the gradient of all parameters together, to which a longer one is shortened. None: no limit.",
        default=None,
    )
    ema: Annotated[float, Range(0, 1, open_high=True)] = flag(
        "Decay per step of an exponential moving average of the weights, such as 0.999; lower in the first steps. 0: "
        "no average. Each epoch validates both the weights and their average, and the better ones are kept; without "
        "validation images, the average is.",
        default=0.0,
    )
    label_smoothing: Annotated[float, Range(0, 1)] = flag(
        "Fraction of each label that is spread evenly over all classes in training. Validation and test losses are "
        "without it.",
        default=0.0,
    )
    mixup: MixingParameter = flag(
        "A above 0: mix each training image with another one of its batch, with weights from Beta(A, A), and their "
        "labels alike. The training error then counts the label with the larger weight. With --cutmix as well, each "
        "image gets one of both at random.",
        default=0.0,
    )
    cutmix: MixingParameter = flag(
        "A above 0: replace a rectangle of each training image by that of another one of its batch, and mix labels by "
        "area. The part that an image keeps is drawn from Beta(A, A).",
        default=0.0,
    )
    trivial_augment: bool = flag(
        "TrivialAugment: change each training image by one of 14 operations of random strength, such as a rotation, a "
        "shift or more contrast.",
        default=False,
    )
    erasing: Annotated[float, Range(0, 1)] = flag(
        "Random erasing: probability that a rectangle of a training image, from 2 % to 33 % of its area, gets the mean "
        "colour.",
        default=0.0,
    )
    cutout: Annotated[int, Range(0, 1024)] = flag(
        "Side in pixels of a square of each training image, anywhere in it, that gets the mean colour. 0: none.",
        default=0,
    )
    crop_border: Literal["mean", "black"] = flag(
        'Colour around images that are padded and cropped: the "mean" of the data set, as in the code of the paper\'s '
        'authors, or "black", as in most other programs.',
        default="mean",
    )
    augment: bool | None = flag(
        "Crop and flip training images at random. None: as in the paper, on CIFAR and not on SVHN; on folders too, and "
        "not on digits.",
        default=None,
        role=Role.CHOSEN,
    )
    valid_size: Annotated[int, Range(0)] | None = flag(
        "Training images held out to choose the best epoch. 0: train on all and keep the last epoch. None: 5,000 for "
        "CIFAR and 6,000 for SVHN as in the paper, 140 for digits, and a tenth of a folder.",
        default=None,
        role=Role.CHOSEN,
    )
    precision: Precision = flag(
        '"fp32" is IEEE fp32 on every device. "tf32" lets GPUs from compute capability 8.0 on round the factors of '
        'convolutions to 10 bits after the point. "bf16" and "fp16" use autocast; with "fp16" the loss is scaled.',
        default="fp32",
    )
    compile: bool = flag(
        "Compile the network with torch.compile, which takes minutes at first. For --efficient naive or checkpoint.",
        default=False,
        role=Role.FREE,
    )
    cuda_graph: bool = flag(
        "On one GPU: let it repeat whole steps by itself as CUDA graphs, so that it does not wait for Python. Results "
        "stay the same to the last bit; the memory of a step stays reserved. So far this is tested without a GPU only.",
        default=False,
        role=Role.FREE,
    )
    deterministic: bool = flag(
        "Equal runs give equal bits. False: let cuDNN choose its algorithms by timing them, and let a GPU add in any "
        "order, which changes results by rounding.",
        default=True,
        role=Role.FREE,
    )
    sync_bn: bool = flag(
        "Under torchrun on GPUs: normalise with the statistics of all processes together.", default=False
    )
    threads: Threads | None = flag(
        "CPU threads for computation, in each process. None: torch decides. Another number changes results by "
        "rounding.",
        default=None,
        role=Role.FREE,
    )
    limit_batches: Annotated[int, Range(1, 1_000_000)] | None = flag(
        "A dry run: end every epoch, and validation and test, after this many batches.", default=None
    )
    seed: Seed | None = flag(
        "Makes validation split, initial weights, order, augmentation and dropout repeatable. None: draw one and write "
        "it to config.json.",
        default=None,
        role=Role.CHOSEN,
    )
    seeds: tuple[Seed, ...] | None = flag(
        "Train one run for each of these seeds, one after the other, in the folders seed-N of --save, and print mean "
        "and standard deviation of their test errors. Several numbers with commas between them are the seeds; one "
        "number alone is how many there are, beginning with seed 0. With --resume True, finished runs are left as they "
        "are, and seeds may be added. In place of --seed.",
        default=None,
        role=Role.FREE | Role.NOT_COMPARED,
    )
    checkpoint_minutes: Annotated[float, Range(0, open_low=True)] | None = flag(
        "Also save the run inside its epochs, between two steps, every so many minutes. None: after each epoch, and "
        "when a signal stops the run.",
        default=None,
        role=Role.FREE | Role.NOT_COMPARED,
    )
    download: bool = flag(DOWNLOAD_HELP, default=True, role=Role.FREE | Role.NOT_COMPARED)
    data_url: DataUrl | None = flag(DATA_URL_HELP, default=None, role=Role.FREE | Role.NOT_COMPARED)
    tensorboard: bool = flag(
        "Also write events for TensorBoard, if that package is installed.",
        default=False,
        role=Role.FREE | Role.NOT_COMPARED,
    )
    resume: bool = flag(
        "Continue the run in --save after its last step, or start it if there is none. Flags that are not given are "
        "those of the run. Only save, data, download, data_url, efficient, compile, cuda_graph, deterministic, "
        "threads, checkpoint_minutes, tensorboard and debug may differ from it, and n_epochs may grow. Every further "
        "epoch then has the learning rate that it has in a run of the new length.",
        default=False,
        role=Role.FREE | Role.NOT_COMPARED,
    )
    debug: bool = flag(DEBUG_HELP, default=False, role=Role.FREE | Role.NOT_COMPARED)

    @property
    def network_settings(self) -> NetworkSettings:
        """The network that is trained."""
        return NetworkSettings(
            network=self.network,
            depth=self.depth,
            growth_rate=self.growth_rate,
            image_size=self.pixels,
            drop_rate=self.drop_rate,
            efficient=self.efficient,
            in_channels=self.in_channels,
        )

    @property
    def milestones(self) -> tuple[float, ...]:
        """Fractions of all epochs after which the learning rate drops."""
        return tuple(map(float, self.lr_milestones.split(",")))

    @property
    def pixels(self) -> int:
        """Height and width of the images, once `checked` has filled it in."""
        assert self.image_size is not None, "settings are checked first"
        return self.image_size

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def title(self) -> str:
        """The network and the data that it is trained on, in words."""
        of_folder = self.dataset == "folder" and self.data
        images = f"folder {plain(self.data.absolute().name)}" if of_folder and self.data else self.dataset
        return f"{self.network_settings.title} on {images}"

    def checked(self) -> Self:
        """Check network, image size and channels, and return the same settings with the image size filled in.

        Raises:
            UserError: If they are not valid together; the message names flag, value and what is allowed.
            DataError: If the data set has no images of so many channels.
        """
        check_network(self.network, depth=self.depth, growth_rate=self.growth_rate)
        size = image_size_of(self.network, dataset=self.dataset, image_size=self.image_size)
        require_channels(self.dataset, self.in_channels)
        return replace(self, image_size=size)

    def identity(self) -> RunIdentity:
        """The settings by which a run is recognised when it is resumed, and their roles."""
        return RunIdentity(
            settings=self.plain(),
            # Runs of older versions had images of the one size of their data set.
            defaults={**self.defaults(), "image_size": self.image_size},
            free=self.names(Role.FREE),
            chosen=self.names(Role.CHOSEN),
            growing=self.names(Role.GROWING),
            by_file_name=self.names(Role.FILE_NAME),
        )

    @classmethod
    def recorded(cls, flags: Mapping[str, Any], *, folder: Path) -> Self:
        """The settings that config.json of a run holds. Flags that an older version did not record have their defaults.

        Args:
            flags: Plain values by name.
            folder: Folder of the run, which may have been moved since.

        Raises:
            FireError: If there is no such flag, or it takes no such value.
            UserError: If there is no such network.
            DataError: If the data set has no images of so many channels.
        """
        return cls(**(parse_recorded(cls, flags) | {"save": folder})).checked()
