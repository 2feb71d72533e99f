"""The data sets: where each comes from, how the paper prepares it, and how its images become tensors."""

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from data import files
from data.errors import DataError, MissingData
from data.files import File


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), from 0 to the number of classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at some indices (M,)."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same images on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Source:
    """What is read from disk: all training images, all test images, and the names of the classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A data set and the paper's way with it.

    Attributes:
        read: Takes the data folder and whether to download, and returns what is there.
        needs_folder: Whether the data lies in a folder of the user's.
        mean: Per channel, of pixels divided by 255.
        std: Per channel, of pixels divided by 255.
        valid_size: Training images that the paper holds out.
        augment: Whether training images are cropped and flipped by default.
    """

    read: Callable[[Path | None, bool], Source]
    needs_folder: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    valid_size: int
    augment: bool


def load(name: str, *, folder: Path | None, download: bool) -> Source:
    """Read all images of a data set into memory.

    Args:
        name: A key of `DATASETS`.
        folder: Where its files lie, or are put by a download. "digits" needs none.
        download: Whether missing files may be fetched from the network.

    Raises:
        DataError: MissingData, CorruptedData or NoNetwork; each message names the file, where it belongs and where
            to get it.
    """
    dataset = DATASETS[name]
    if dataset.needs_folder and folder is None:
        raise MissingData(f"--dataset {name} needs --data FOLDER, which holds its files or is where to download them")
    return dataset.read(folder, download)


def split_validation(train: Split, *, size: int, seed: int) -> tuple[Split, Split]:
    """Hold out `size` images at random: returns the remaining training images, in their order, and the held-out ones.

    Args:
        train: All training images.
        size: From 0 to one less than their number.
        seed: The choice is a function of this and the number of images.

    Raises:
        DataError: If no image would remain for training.
    """
    if not 0 <= size < len(train):
        raise DataError(f"--valid_size is {size}, but must be 0 or more and below {len(train):,}, the training images")
    generator = torch.Generator().manual_seed(random.Random(f"validation split, seed {seed}").getrandbits(63))
    order = torch.randperm(len(train), generator=generator)
    return train.take(order[size:].sort().values), train.take(order[:size].sort().values)


def _read_cifar(reader: type[datasets.CIFAR10], folder: Path, download: bool) -> Source:
    digests = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files.ensure(
        folder,
        members=[File(f"{reader.base_folder}/{filename}", md5, reader.url) for filename, md5 in digests],
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
    """CIFAR-10 as `folder/cifar-10-batches-py/`, or as its archive."""
    return _read_cifar(datasets.CIFAR10, folder, download)


def read_cifar100(folder: Path, download: bool) -> Source:
    """CIFAR-100 with its 100 fine labels, as `folder/cifar-100-python/`, or as its archive."""
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
# does no more. Those of digits are over its training images, as enlarged; a test computes them again.
DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        read_cifar10, True, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159), valid_size=5000, augment=True
    ),
    "cifar100": Dataset(
        read_cifar100, True, (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615), valid_size=5000, augment=True
    ),
    "svhn": Dataset(read_svhn, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), valid_size=6000, augment=False),
    "digits": Dataset(read_digits, False, (0.30511,) * 3, (0.32382,) * 3, valid_size=140, augment=False),
}
