"""Data sets by name: synthetic ones in memory, their addresses, and errors when one cannot be loaded."""

from pathlib import Path

import pytest

from data.datasets import load
from data.errors import DataError
from data.splits import Images, Split
from tests.support.synthetic_datasets import cifar10, cifar100, svhn

CIFAR = Path("cifar-10-batches-py")
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ADDRESS_100 = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
SVHN_ADDRESS = "http://ufldl.stanford.edu/housenumbers/{}"

# A function that returns a synthetic data set, the file that is reported missing first, and its address.
KINDS = {
    "cifar10": (lambda: cifar10(50, 20, 0), CIFAR / "data_batch_1", ADDRESS),
    "cifar100": (lambda: cifar100(50, 20, 0), Path("cifar-100-python/train"), ADDRESS_100),
    "svhn": (lambda: svhn(20, 20, 0, num_extra=20), Path("train_32x32.mat"), SVHN_ADDRESS.format("train_32x32.mat")),
}


def contents_of(folder):
    """Return all files, folders and links below a folder, with times of change and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def refused(error, name, folder, *, download=False):
    """Assert that a data set cannot be loaded, and return the line of the error."""
    with pytest.raises(DataError) as caught:
        load(name, folder=folder, download=download)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "\n" not in message
    return message


def in_memory(images: Images) -> Split:
    """Assert that images are in memory."""
    assert isinstance(images, Split)
    return images


def flip_a_byte(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
