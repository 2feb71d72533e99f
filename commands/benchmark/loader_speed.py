"""Training images per second: whole batches at once, against torchvision's transforms of one PIL image at a time.

    python -m commands.benchmark.loader_speed

Both prepare the same images in the same way (shuffle, pad by 4, crop, flip, normalise) in batches of 256, on one thread
of the CPU, one after the other in each round.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.datasets import DATASETS
from data.loader import PADDING, Loader
from data.splits import Split

BATCH_SIZE = 256
CIFAR10 = DATASETS["cifar10"]


class PILImages(Dataset):
    """Images that are transformed one by one, as torchvision's data sets do it."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def made_split(num_images: int) -> Split:
    """Random pixels and labels in the shape of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (num_images,), generator=generator))


def tensor_loader(split: Split) -> Loader:
    """This package's training batches."""
    return Loader(split, batch_size=BATCH_SIZE, mean=CIFAR10.mean, std=CIFAR10.std, augment=True)


def pil_loader(split: Split) -> DataLoader:
    """Training batches as the usual scripts make them."""
    steps = [
        transforms.RandomCrop(split.images.shape[-1], padding=PADDING),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(CIFAR10.mean, CIFAR10.std),
    ]
    return DataLoader(PILImages(split, transforms.Compose(steps)), batch_size=BATCH_SIZE, shuffle=True, num_workers=0)


def images_per_second(batches: Iterator[tuple[Tensor, ...]]) -> float:
    """Go through an epoch and divide its images by the time that it took."""
    start = time.perf_counter()
    num_images = sum(len(images) for images, *_ in batches)
    return num_images / (time.perf_counter() - start)


def measure(*, num_images: int, rounds: int) -> str:
    """Time both pipelines in alternation and return a table of their speeds.

    Args:
        num_images: Images in an epoch.
        rounds: Epochs of each pipeline. The ratio is taken within each round.
    """
    split = made_split(num_images)
    tensors, pil = tensor_loader(split), pil_loader(split)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = [
            (images_per_second(tensors.epoch(number)), images_per_second(iter(pil))) for number in range(1, rounds + 1)
        ]
    finally:
        torch.set_num_threads(threads)
    of_tensors, of_pil = zip(*speeds, strict=True)
    rows = [
        f"{num_images:,} images of 32x32, batches of {BATCH_SIZE}: median of {rounds} rounds (min - max)",
        _row("data.loader, whole batches, images/s", of_tensors, ",.0f"),
        _row("torchvision on PIL images, images/s", of_pil, ",.0f"),
        _row("ratio within a round", [one / other for one, other in speeds], ".1f"),
        f"{_cpu_name()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}",
    ]
    return "\n".join(rows)


def _row(name: str, values: list[float], number_format: str) -> str:
    median, low, high = (f"{value:{number_format}}" for value in (statistics.median(values), min(values), max(values)))
    return f"{name:38}{median:>9} ({low} - {high})"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.benchmark.loader_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=11, help="epochs of each pipeline (default: %(default)s)")
    parser.add_argument("--images", type=int, default=20_000, help="images in an epoch (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.images) < 1:
        parser.error("--rounds and --images must be 1 or more")
    print(measure(num_images=arguments.images, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
