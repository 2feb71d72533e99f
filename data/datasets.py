"""The data sets: where each comes from, how the paper prepares it, and how its images become tensors."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import datasets

from data import files
from data.errors import DataError, MissingData
from data.files import File
from data.folder import read_folder
from data.source import Source, Split

IMAGE_SIZE = 32  # height and width of the images of all data sets but the user's own


@dataclass(frozen=True)
class Dataset:
    """A data set and the way with it: the paper's, or for a user's own images what is usual.

    Attributes:
        read: Takes the data folder and whether to download, and `image_size` if that is free; returns what is there.
        needs_folder: Whether the data lies in a folder of the user's.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, of pixels divided by 255.
        valid_size: Training images that are held out by default. None: one tenth of them.
        augment: Whether training images are cropped and flipped by default.
        grey: Whether all images are grey, so that others must become so.
        free_size: Whether images are made as large as the user wants them.
    """

    read: Callable[..., Source]
    needs_folder: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    valid_size: int | None
    augment: bool
    grey: bool = False
    free_size: bool = False


def load(name: str, *, folder: Path | None, download: bool, image_size: int = IMAGE_SIZE) -> Source:
    """Read all images of a data set into memory, or for "folder" find them.

    Args:
        name: A key of `DATASETS`.
        folder: Where its files lie, or are put by a download. "digits" needs none.
        download: Whether missing files may be fetched from the network.
        image_size: Height and width of the batches.

    Raises:
        DataError: MissingData, CorruptedData or NoNetwork; each message names the file, where it belongs and where
            to get it. Also if the data set has images of another size only.
    """
    dataset = DATASETS[name]
    if not dataset.free_size and image_size != IMAGE_SIZE:
        raise DataError(f"--image_size is {image_size}, but the images of {name} are {IMAGE_SIZE}x{IMAGE_SIZE}")
    if dataset.needs_folder and folder is None:
        holds = "train/ and test/" if name == "folder" else "its files or is where to download them"
        raise MissingData(f"--dataset {name} needs --data FOLDER, which holds {holds}")
    return dataset.read(folder, download, **({"image_size": image_size} if dataset.free_size else {}))


def validation_size(source: Source, dataset: Dataset, asked: int | None) -> int | None:
    """How many training images are held out: as many as asked for, or by default as the data set says.

    Returns:
        The number, or None where the source has validation images of its own.

    Raises:
        DataError: If it has, and some are asked for.
    """
    if source.valid is not None:
        if asked is not None:
            raise DataError(
                f"--valid_size is {asked}, but the data set has {len(source.valid):,} validation images of its own; "
                "leave the flag out"
            )
        return None
    default = max(1, len(source.train) // 10) if dataset.valid_size is None else dataset.valid_size
    return default if asked is None else asked


def _read_cifar(reader: type[datasets.CIFAR10], folder: Path, download: bool) -> Source:
    digests = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    inside = {filename: f"{reader.base_folder}/{filename}" for filename, _ in digests}
    if files.holds_some(folder, inside):  # --data is that folder itself
        reader = type(reader.__name__, (reader,), {"base_folder": ""})
    files.ensure(
        folder,
        members=[
            File((Path(reader.base_folder) / filename).as_posix(), md5, reader.url, inside[filename])
            for filename, md5 in digests
        ],
        archive=File(reader.filename, reader.tgz_md5, reader.url),
        download=download,
    )
    with warnings.catch_warnings():
        # The files were pickled long ago; NumPy 2.4.0 to 2.4.4 warn of how their dtypes are given.
        warnings.filterwarnings("ignore", message=".*align should be passed as Python or NumPy boolean")
        train, test = (reader(folder, train=is_train) for is_train in (True, False))
    return Source(_cifar_split(train), _cifar_split(test), tuple(train.classes))


def _cifar_split(data: datasets.CIFAR10) -> Split:
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return Split(images, torch.tensor(data.targets))


def read_cifar10(folder: Path, download: bool) -> Source:
    """CIFAR-10 as `folder/cifar-10-batches-py/`, as that folder itself, or as its archive."""
    return _read_cifar(datasets.CIFAR10, folder, download)


def read_cifar100(folder: Path, download: bool) -> Source:
    """CIFAR-100 with its 100 fine labels, as `folder/cifar-100-python/`, as that folder, or as its archive."""
    return _read_cifar(datasets.CIFAR100, folder, download)


def read_svhn(folder: Path, download: bool) -> Source:
    """SVHN as `folder/{train,extra,test}_32x32.mat`; the paper trains on train and extra together."""
    reader = datasets.SVHN
    members = [File(filename, md5, url) for url, filename, md5 in reader.split_list.values()]
    files.ensure(folder, members=members, archive=None, download=download)
    train, extra, test = (_svhn_split(reader(folder, split=split)) for split in ("train", "extra", "test"))
    both = Split(torch.cat([train.images, extra.images]), torch.cat([train.labels, extra.labels]))
    return Source(both, test, tuple("0123456789"))


def _svhn_split(data: datasets.SVHN) -> Split:
    return Split(torch.from_numpy(np.ascontiguousarray(data.data)), torch.from_numpy(data.labels))


def read_digits(folder: Path | None, download: bool) -> Source:
    """scikit-learn's 1,797 handwritten digits, which lie inside the package: 8x8, enlarged to 32x32 and three channels.

    Every fifth image of each class is a test image. The data set has no official split; the same 13 writers are in
    both parts.
    """
    from sklearn.datasets import load_digits  # a second of import time that no other data set needs

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (N, 1, 8, 8), values were 0 to 16
    images = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    every = Split(images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target).long())
    occurrence = F.one_hot(every.labels).cumsum(0).gather(1, every.labels[:, None]).squeeze(1)  # 1, 2, ... per class
    is_test = occurrence % 5 == 0
    classes = tuple(str(name) for name in digits.target_names)
    return Source(every.take((~is_test).nonzero().squeeze(1)), every.take(is_test.nonzero().squeeze(1)), classes)


# Means and standard deviations of CIFAR are over all pixels of the training images. The paper divides SVHN by 255 and
# does no more. Those of digits are over its training images, as enlarged; a test computes them again. A user's own
# images get those of ImageNet, which torchvision's weights were trained with.
DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        read_cifar10, True, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159), valid_size=5000, augment=True
    ),
    "cifar100": Dataset(
        read_cifar100, True, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), valid_size=5000, augment=True
    ),
    "svhn": Dataset(read_svhn, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), valid_size=6000, augment=False),
    "digits": Dataset(read_digits, False, (0.30511,) * 3, (0.32382,) * 3, valid_size=140, augment=False, grey=True),
    "folder": Dataset(
        read_folder, True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), valid_size=None, augment=True, free_size=True
    ),
}
