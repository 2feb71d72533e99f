"""Images per second of the data pipelines, compared with plain code over torchvision's transforms on the same images.

Training batches are prepared from images in memory: shuffle, pad by 4, crop, flip, normalise; with the modern recipe
also TrivialAugment, random erasing, and mixup or cutmix. Files are read for prediction: decode, resize to 32x32,
normalise; then they are classified as well by a DenseNet-BC of depth 40, the same on both sides. The files were written
a moment ago, so that the system has them in memory.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from commands.benchmark.measure import cells_of, columns_of
from commands.recipes import MODERN
from commands.tables import aligned, to_csv
from data.datasets import DATASETS, IMAGE_SIZE
from data.epoch_plan import CROPS_ALONE, PADDING, Augmentation
from data.images import read_images
from data.loader import Loader
from data.splits import Split
from data.threads import count_threads
from models import densenet_bc
from train import runtime
from train.errors import UserError
from train.terminal import progress

BATCH_SIZE = 256
CIFAR10 = DATASETS["cifar10"]
NUM_CLASSES = 10
MODERN_AUGMENTATION = Augmentation(
    trivial=True, erasing=MODERN["erasing"], mixup=MODERN["mixup"], cutmix=MODERN["cutmix"]
)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FileKind:
    """Image files of one format and size.

    Attributes:
        suffix: Ending of the file names, and Pillow's name of the format in lower case.
        size: Width and height in pixels.
        options: Arguments for Pillow's encoder.
    """

    suffix: str
    size: tuple[int, int]
    options: dict[str, Any]


KINDS = {"PNG 32x32": FileKind("png", (32, 32), {}), "JPEG 500x375": FileKind("jpeg", (500, 375), {"quality": 90})}


@dataclass(frozen=True)
class Speeds:
    """The speed of one pipeline and of its baseline, in images per second.

    Attributes:
        name: The work that both do.
        ours: One speed for each round.
        baseline: The baseline's speeds in the same rounds.
    """

    name: str
    ours: list[float]
    baseline: list[float]

    @property
    def ratios(self) -> list[float]:
        """The ratio of both speeds in each round."""
        return [one / other for one, other in zip(self.ours, self.baseline, strict=True)]

    def cells(self) -> list[str]:
        """The row as it is printed."""
        columns = ((self.ours, ",.0f"), (self.baseline, ",.0f"), (self.ratios, ".2f"))
        return [self.name, *(cell for values, form in columns for cell in cells_of(values, form))]

    def record(self) -> dict[str, object]:
        """The row for CSV."""
        record: dict[str, object] = {"work": self.name}
        record |= columns_of("images_per_second", self.ours) | columns_of("baseline", self.baseline)
        return record | columns_of("ratio", self.ratios)


@dataclass(frozen=True)
class ImageSpeeds:
    """The speeds of all pipelines.

    Attributes:
        rows: One for each kind of work.
        rounds: Rounds in which both sides were timed.
        num_images: Images of a training epoch.
        num_files: Files of each kind.
    """

    rows: list[Speeds]
    rounds: int
    num_images: int
    num_files: int

    def as_text(self) -> str:
        """The table with its legend."""
        title = (
            f"{self.num_images:,} images of 32x32 for training, {self.num_files:,} files of each kind for prediction, "
            f"batches of {BATCH_SIZE}"
        )
        header = ["images/s", "ours", "(min - max)", "baseline", "(min - max)", "ratio", "(min - max)"]
        legend = [
            f"medians of {self.rounds} round{'s' if self.rounds > 1 else ''}; ratios are taken within a round",
            "baseline: torchvision's transforms of one PIL image after the other",
            "training batches are prepared on one thread",
            _conditions(),
        ]
        return "\n".join([title, "", aligned([header, *(row.cells() for row in self.rows)]), "", *legend])

    def as_csv(self) -> bytes:
        """A line for each row, with the conditions in further columns."""
        constants: dict[str, object] = {"rounds": self.rounds, "processor": runtime.describe_processor(CPU)}
        constants |= {"cpus": count_threads(), "cpu_threads": torch.get_num_threads()}
        constants |= {package: version(package) for package in ("torch", "torchvision", "pillow")}
        return to_csv([row.record() | constants for row in self.rows])


def _conditions() -> str:
    processor = f"{runtime.describe_processor(CPU)}, {count_threads()} CPUs, {torch.get_num_threads()} threads of torch"
    versions = f"torch {version('torch')}, torchvision {version('torchvision')}, Pillow {version('pillow')}"
    return f"{processor}; Python {platform.python_version()}, {versions}"


def measure_images(
    *, rounds: int, num_images: int = 20_000, num_files: int = 2000, classifies: bool = True
) -> ImageSpeeds:
    """Time all pipelines on the CPU, each in turn with its baseline.

    Args:
        rounds: How often each side is timed, 1 or more.
        num_images: Images of a training epoch.
        num_files: Files of each kind.
        classifies: Whether files are classified too, which takes most of the time.

    Raises:
        UserError: If `rounds` is 0.
    """
    if rounds < 1:
        raise UserError("--rounds is '0', but --what images measures nothing but time; it must be 1 or more")
    rows = _training_speeds(num_images, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in KINDS.items():
            paths = write_files(Path(folder), kind, num_files)
            rows += _file_speeds(name, paths, rounds=rounds, classifies=classifies)
    return ImageSpeeds(rows, rounds, num_images, num_files)


def _training_speeds(num_images: int, *, rounds: int) -> list[Speeds]:
    split, rows = synthetic_split(num_images), []
    for work, is_modern in (("training batches", False), ("training batches, modern recipe and TrivialAugment", True)):
        loader, baseline = training_loader(split, is_modern=is_modern), pil_loader(split, is_modern=is_modern)
        speeds = []
        with _one_thread():
            for epoch in progress(range(1, rounds + 1), work):
                ours = images_per_second(len(batch.images) for batch in loader.epoch(epoch))
                speeds.append((ours, images_per_second(len(images) for images, _ in baseline)))
        rows.append(Speeds(work, [one for one, _ in speeds], [other for _, other in speeds]))
    return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _file_speeds(name: str, paths: list[str], *, rounds: int, classifies: bool) -> list[Speeds]:
    network = runtime.placed(densenet_bc(40, 12), CPU).eval()

    @torch.inference_mode()
    def classify(images: Tensor) -> int:
        network(images).softmax(1).topk(1)
        return len(images)

    uses: dict[str, Callable[[Tensor], int]] = {f"{name}, read": len}
    if classifies:
        uses[f"{name}, read and classified"] = classify
    rows = []
    for work, use in uses.items():
        ours, baseline = [], []
        for _ in progress(range(rounds), work):
            ours.append(images_per_second(map(use, file_batches(paths))))
            baseline.append(images_per_second(map(use, pil_file_batches(paths))))
        rows.append(Speeds(work, ours, baseline))
    return rows


def images_per_second(counts: Iterable[int]) -> float:
    """Consume the numbers of images in batches, and divide their sum by the time that this takes."""
    start = time.perf_counter()
    num_images = sum(counts)
    return num_images / (time.perf_counter() - start)


def synthetic_split(num_images: int) -> Split:
    """Random pixels and labels in the shape of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(NUM_CLASSES, (num_images,), generator=generator))


def training_loader(split: Split, *, is_modern: bool = False) -> Loader:
    """The training batches of this program: crops and flips, or the modern recipe and TrivialAugment as well."""
    return Loader(
        split,
        batch_size=BATCH_SIZE,
        mean=CIFAR10.mean,
        std=CIFAR10.std,
        augment=True,
        augmentation=MODERN_AUGMENTATION if is_modern else CROPS_ALONE,
        num_classes=NUM_CLASSES,
    )


class PILImages(Dataset):
    """Images that are transformed one by one, as in torchvision's data sets."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def pil_loader(split: Split, *, is_modern: bool = False) -> DataLoader:
    """The same as most scripts prepare them."""
    steps = [transforms.RandomCrop(split.images.shape[-1], padding=PADDING), transforms.RandomHorizontalFlip()]
    steps += [transforms.TrivialAugmentWide()] if is_modern else []
    steps += [transforms.ToTensor(), transforms.Normalize(CIFAR10.mean, CIFAR10.std)]
    steps += [transforms.RandomErasing(MODERN_AUGMENTATION.erasing)] if is_modern else []
    mixing = v2.RandomChoice(
        [
            v2.MixUp(alpha=MODERN_AUGMENTATION.mixup, num_classes=NUM_CLASSES),
            v2.CutMix(alpha=MODERN_AUGMENTATION.cutmix, num_classes=NUM_CLASSES),
        ]
    )
    return DataLoader(
        PILImages(split, transforms.Compose(steps)),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=0,
        collate_fn=(lambda images: mixing(*default_collate(images))) if is_modern else None,
    )


def write_files(folder: Path, kind: FileKind, count: int) -> list[str]:
    """Write image files of one kind, twenty of each image, since drawing an image takes longer than reading it."""
    paths = [folder / f"{i:05}.{kind.suffix}" for i in range(count)]
    for start in range(0, count, 20):
        first, *copies = paths[start : start + 20]
        synthetic_image(kind.size, seed=start).save(first, **kind.options)
        for path in copies:
            path.write_bytes(first.read_bytes())
    return [str(path) for path in paths]


def synthetic_image(size: tuple[int, int], *, seed: int) -> Image.Image:
    """A few large shapes of random colours with fine noise, so that it compresses about as a photo does."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.randint(256, (4, 5, 3), dtype=torch.uint8, generator=generator)
    smooth = torch.from_numpy(np.array(Image.fromarray(shapes.numpy()).resize(size, Image.Resampling.BICUBIC)))
    noise = torch.randint(-10, 11, smooth.shape, generator=generator)
    return Image.fromarray((smooth + noise).clamp(0, 255).byte().numpy())


def file_batches(paths: list[str]) -> Iterator[Tensor]:
    """Batches of image files, as the command `predict` reads them."""
    for batch in read_images(
        paths,
        image_size=IMAGE_SIZE,
        grey=False,
        mean=CIFAR10.mean,
        std=CIFAR10.std,
        batch_size=BATCH_SIZE,
        device=CPU,
    ):
        yield batch.images


def pil_file_batches(paths: list[str]) -> Iterator[Tensor]:
    """Batches of image files, as most scripts read them."""
    steps = [
        transforms.Resize(IMAGE_SIZE),
        transforms.CenterCrop(IMAGE_SIZE),
        transforms.ToTensor(),
        transforms.Normalize(CIFAR10.mean, CIFAR10.std),
    ]
    prepare = transforms.Compose(steps)
    for start in range(0, len(paths), BATCH_SIZE):
        images = []
        for path in paths[start : start + BATCH_SIZE]:
            with Image.open(path) as file:
                images.append(prepare(file.convert("RGB")))
        yield torch.stack(images)
