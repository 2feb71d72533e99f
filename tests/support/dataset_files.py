"""Data sets by name: how they are made, where they come from, and the line that says why one cannot be loaded."""

from pathlib import Path

import pytest

from data.datasets import load
from data.errors import DataError
from tests.support.synthetic_datasets import cifar10, cifar100, svhn

CIFAR = Path("cifar-10-batches-py")
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ADDRESS_100 = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
SVHN_ADDRESS = "http://ufldl.stanford.edu/housenumbers/{}"

# A function that makes a data set in memory, the file whose absence is told first, and where it comes from.
KINDS = {
    "cifar10": (lambda: cifar10(50, 20, 0), CIFAR / "data_batch_1", ADDRESS),
    "cifar100": (lambda: cifar100(50, 20, 0), Path("cifar-100-python/train"), ADDRESS_100),
    "svhn": (lambda: svhn(20, 20, 0, num_extra=20), Path("train_32x32.mat"), SVHN_ADDRESS.format("train_32x32.mat")),
}


def contents_of(folder):
    """All files, folders and links, with contents and times of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def refused(error, name, folder, *, download=False):
    """Load a data set that cannot be loaded, and return the one line that a user reads."""
    with pytest.raises(DataError) as caught:
        load(name, folder=folder, download=download)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "\n" not in message
    return message


def flip_a_byte(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
