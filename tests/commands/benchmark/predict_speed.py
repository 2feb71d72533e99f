"""Image files per second, from file to class: our way, against a plain loop over torchvision's transforms.

    python -m tests.commands.benchmark.predict_speed

Files of two kinds are made in a temporary folder: PNG of 32x32 pixels and JPEG of 500x375. Both ways resize each to
32x32, normalise it, and put 256 of them together; then they are read only, or also go through a DenseNet-BC of depth
40, the same for both. The two ways take turns in each round. All files are in the system's memory by then, as they have
just been written.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms

from commands.predict.predictions import most_likely
from data.datasets import DATASETS, IMAGE_SIZE
from data.images import read_images
from data.threads import count_threads
from models import densenet_bc
from tests.support.synthetic_images import encoded, picture, write
from train import runtime

BATCH_SIZE = 256
KINDS = {"PNG 32x32": ("png", (32, 32), {}), "JPEG 500x375": ("jpeg", (500, 375), {"quality": 90})}
SPEC = DATASETS["cifar10"]
CPU = torch.device("cpu")


def make_files(folder: Path, kind: str, number: int) -> list[str]:
    """Write files of one kind; every twentieth picture is a new one, as making them takes longer than reading."""
    suffix, shape, options = KINDS[kind]
    contents = [encoded(picture(*shape, seed), suffix.upper(), **options) for seed in range(-(-number // 20))]
    return [str(write(folder / kind / f"{i:05}.{suffix}", contents[i // 20])) for i in range(number)]


def our_batches(paths: list[str]) -> Iterator[Tensor]:
    """As the command `predict` reads them."""
    preparation = {"image_size": IMAGE_SIZE, "grey": False, "mean": SPEC.mean, "std": SPEC.std}
    for batch in read_images(paths, **preparation, batch_size=BATCH_SIZE, device=CPU):
        yield batch.images


def plain_batches(paths: list[str]) -> Iterator[Tensor]:
    """As most scripts read them."""
    steps = [
        transforms.Resize(IMAGE_SIZE),
        transforms.CenterCrop(IMAGE_SIZE),
        transforms.ToTensor(),
        transforms.Normalize(SPEC.mean, SPEC.std),
    ]
    prepare = transforms.Compose(steps)
    for start in range(0, len(paths), BATCH_SIZE):
        images = []
        for path in paths[start : start + BATCH_SIZE]:
            with Image.open(path) as file:
                images.append(prepare(file.convert("RGB")))
        yield torch.stack(images)


def files_per_second(batches: Iterator[Tensor], use: Callable[[Tensor], object]) -> float:
    """Hand all batches over, and divide their images by the time that it took."""
    start = time.perf_counter()
    number = 0
    for images in batches:
        use(images)
        number += len(images)
    return number / (time.perf_counter() - start)


def measure(*, number: int, rounds: int, network: bool = True) -> str:
    """Return a table of both ways.

    Args:
        number: Files of each kind.
        rounds: How often each way is timed.
        network: Also with a network behind the reading, which takes most of the time on a CPU.
    """
    model = runtime.placed(densenet_bc(40, 12), CPU).eval()
    uses = {"read": lambda images: None, "read and classified": lambda images: most_likely(model, images, top=1)}
    lines = [f"{number:,} files of each kind, batches of {BATCH_SIZE}: files/s, median of {rounds} rounds (min - max)"]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            paths = make_files(Path(folder), kind, number)
            for name in uses if network else ["read"]:
                speeds = [
                    [files_per_second(batches(paths), uses[name]) for batches in (our_batches, plain_batches)]
                    for _ in range(rounds)
                ]
                lines += _rows(f"{kind}, {name}", speeds)
    return "\n".join([*lines, _machine()])


def _machine() -> str:
    processor = f"{runtime.describe_processor(CPU)}, {count_threads()} CPUs, {torch.get_num_threads()} threads of torch"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    return f"{processor}; Python {platform.python_version()}, {versions}"


def _rows(title: str, speeds: list[list[float]]) -> list[str]:
    ours, plain = zip(*speeds, strict=True)
    return [
        title,
        _row("data.images", ours, ",.0f"),
        _row("plain loop", plain, ",.0f"),
        _row("ratio within a round", [one / other for one, other in speeds], ".2f"),
    ]


def _row(name: str, values: list[float], number_format: str) -> str:
    median, low, high = (f"{value:{number_format}}" for value in (statistics.median(values), min(values), max(values)))
    return f"  {name:24}{median:>9} ({low} - {high})"


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.commands.benchmark.predict_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed (default: %(default)s)")
    parser.add_argument("--files", type=int, default=2000, help="files of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.files) < 1:
        parser.error("--rounds and --files must be 1 or more")
    print(measure(number=arguments.files, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
