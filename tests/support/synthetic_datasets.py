"""Small synthetic data sets in the exact form in which CIFAR-10, CIFAR-100 and SVHN are distributed.

    synthetic = make_cifar10(folder, num_train=200, num_test=50, monkeypatch=monkeypatch)

writes the files into the folder, and replaces the official digests in torchvision by theirs until the test ends. A
reader must find `synthetic.train` and `synthetic.test` in the files. Each class has a colour and a coarse texture of
its own, so that a small network learns it within a few epochs.
"""

import email.message
import hashlib
import io
import pickle
import struct
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from data.splits import Split

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SVHN_CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class SyntheticDataset:
    """A data set in memory, as the bytes of its files.

    Attributes:
        reader: The class of torchvision that reads the files.
        parts: The images in the files: "train" and "test", for SVHN also "extra".
        classes: Names of the classes.
        files: Contents by path within the data folder.
        archive: The tar.gz archive of all files; empty for SVHN, which has none.
    """

    reader: Any  # type[CIFAR10], type[CIFAR100] or type[SVHN], which have no attributes in common
    parts: dict[str, Split]
    classes: tuple[str, ...]
    files: dict[str, bytes]
    archive: bytes = b""

    @property
    def train(self) -> Split:
        """All training images, in the order of the files."""
        parts = [self.parts[name] for name in ("train", "extra") if name in self.parts]
        return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))

    @property
    def test(self) -> Split:
        return self.parts["test"]

    @property
    def downloads(self) -> dict[str, bytes]:
        """Contents of the files on the server, by address."""
        if self.archive:
            return {self.reader.url: self.archive}
        return {url: self.files[name] for url, name, _ in self.reader.split_list.values()}

    def write_files(self, folder: Path) -> None:
        for name, contents in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)

    def write_archive(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.reader.filename).write_bytes(self.archive)

    def trust(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace torchvision's digests by those of the files and the archive of this data set."""
        if not self.archive:
            split_list = {
                split: [url, name, md5(self.files[name])] for split, (url, name, _) in self.reader.split_list.items()
            }
            monkeypatch.setattr(self.reader, "split_list", split_list)
            return
        base = self.reader.base_folder
        for table in ("train_list", "test_list"):
            names = [name for name, _ in getattr(self.reader, table)]
            monkeypatch.setattr(self.reader, table, [[name, md5(self.files[f"{base}/{name}"])] for name in names])
        meta = self.reader.meta
        monkeypatch.setattr(self.reader, "meta", {**meta, "md5": md5(self.files[f"{base}/{meta['filename']}"])})
        monkeypatch.setattr(self.reader, "tgz_md5", md5(self.archive))

    def with_files(
        self, files: dict[str, bytes], *, also_archived: dict[str, bytes] | None = None
    ) -> "SyntheticDataset":
        """Return the data set with other files, in the archive too, and with more members in the archive."""
        return replace(self, files=files, archive=archived({**files, **(also_archived or {})}))


def make_cifar10(
    folder: Path,
    num_train: int = 100,
    num_test: int = 50,
    seed: int = 0,
    *,
    monkeypatch: pytest.MonkeyPatch | None = None,
    as_archive: bool = False,
) -> SyntheticDataset:
    """Write CIFAR-10's folder, or only its archive; with `monkeypatch` torchvision then accepts the digests."""
    return _put(cifar10(num_train, num_test, seed), folder, monkeypatch, as_archive)


def make_cifar100(
    folder: Path,
    num_train: int = 200,
    num_test: int = 100,
    seed: int = 0,
    *,
    monkeypatch: pytest.MonkeyPatch | None = None,
    as_archive: bool = False,
) -> SyntheticDataset:
    """Write CIFAR-100's folder, or only its archive; with `monkeypatch` torchvision then accepts the digests."""
    return _put(cifar100(num_train, num_test, seed), folder, monkeypatch, as_archive)


def make_svhn(
    folder: Path,
    num_train: int = 60,
    num_test: int = 50,
    seed: int = 0,
    *,
    num_extra: int = 40,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> SyntheticDataset:
    """Write SVHN's three files; with `monkeypatch` torchvision then accepts the digests."""
    return _put(svhn(num_train, num_test, seed, num_extra=num_extra), folder, monkeypatch, as_archive=False)


MAKERS: dict[str, Callable[..., SyntheticDataset]] = {
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "svhn": make_svhn,
}


def _put(
    synthetic: SyntheticDataset, folder: Path, monkeypatch: pytest.MonkeyPatch | None, as_archive: bool
) -> SyntheticDataset:
    if as_archive:
        synthetic.write_archive(folder)
    else:
        synthetic.write_files(folder)
    if monkeypatch is not None:
        synthetic.trust(monkeypatch)
    return synthetic


def cifar10(num_train: int, num_test: int, seed: int) -> SyntheticDataset:
    """Five training files of nearly equal size, a test file and the names of the classes."""
    generator = torch.Generator().manual_seed(seed)
    train, test = (learnable_split(num, 10, generator) for num in (num_train, num_test))
    pieces = [(train.images.tensor_split(5)[i], train.labels.tensor_split(5)[i]) for i in range(5)]
    entries: dict[str, dict] = {
        f"data_batch_{number}": _cifar_batch(images, f"training batch {number} of 5") | {"labels": labels.tolist()}
        for number, (images, labels) in enumerate(pieces, start=1)
    }
    entries["test_batch"] = _cifar_batch(test.images, "testing batch 1 of 1") | {"labels": test.labels.tolist()}
    entries["batches.meta"] = {"num_cases_per_batch": 10000, "label_names": list(CIFAR10_CLASSES), "num_vis": 3072}
    return _synthetic_cifar(datasets.CIFAR10, train, test, CIFAR10_CLASSES, entries)


def cifar100(num_train: int, num_test: int, seed: int) -> SyntheticDataset:
    """A training file, a test file and the names of the classes; five fine labels in a row share a coarse one."""
    generator = torch.Generator().manual_seed(seed)
    train, test = (learnable_split(num, 100, generator) for num in (num_train, num_test))
    classes = tuple(f"fine_{number}" for number in range(100))
    entries = {
        "train": _cifar_batch(train.images, "training batch 1 of 1") | _fine_and_coarse(train.labels),
        "test": _cifar_batch(test.images, "testing batch 1 of 1") | _fine_and_coarse(test.labels),
        "meta": {"fine_label_names": list(classes), "coarse_label_names": [f"coarse_{n}" for n in range(20)]},
    }
    return _synthetic_cifar(datasets.CIFAR100, train, test, classes, entries)


def svhn(num_train: int, num_test: int, seed: int, *, num_extra: int) -> SyntheticDataset:
    """Three MATLAB files; the label of the digit 0 is 10 in them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"train": num_train, "extra": num_extra, "test": num_test}
    parts = {name: learnable_split(num, 10, generator) for name, num in sizes.items()}
    files = {f"{name}_32x32.mat": _matlab_file(split) for name, split in parts.items()}
    return SyntheticDataset(datasets.SVHN, parts, SVHN_CLASSES, files)


def learnable_split(num_images: int, num_classes: int, generator: torch.Generator) -> Split:
    """Images of all classes in equal numbers, shuffled: a class's colour and coarse texture under pixel noise.

    Colours and textures are the same for every generator, so that what is learnt from one split holds for another.
    """
    fixed = torch.Generator().manual_seed(0)
    colours = torch.rand(num_classes, 3, 1, 1, generator=fixed) * 150 + 50
    textures = torch.rand(num_classes, 3, 4, 4, generator=fixed) * 80 - 40
    patterns = F.interpolate(colours + textures, scale_factor=8)
    labels = (torch.arange(num_images) % num_classes)[torch.randperm(num_images, generator=generator)]
    noise = torch.randn(num_images, 3, 32, 32, generator=generator) * 15
    return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)


def _cifar_batch(images: Tensor, title: str) -> dict:
    """The entries of a file of images in both CIFARs. A row has all red, then all green, then all blue pixels."""
    names = [f"synthetic_{number:06}.png" for number in range(len(images))]
    return {"batch_label": title, "data": images.reshape(-1, 3072).numpy(), "filenames": names}


def _fine_and_coarse(labels: Tensor) -> dict:
    return {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}


def _synthetic_cifar(
    reader: Any, train: Split, test: Split, classes: tuple[str, ...], entries: dict[str, dict]
) -> SyntheticDataset:
    files = {f"{reader.base_folder}/{name}": python2_pickle(entry) for name, entry in entries.items()}
    return SyntheticDataset(reader, {"train": train, "test": test}, classes, files, archived(files))


def _matlab_file(split: Split) -> bytes:
    buffer = io.BytesIO()
    labels = split.labels.where(split.labels != 0, 10).to(torch.uint8)
    contents = {"X": split.images.permute(2, 3, 1, 0).numpy(), "y": labels[:, None].numpy()}
    scipy.io.savemat(buffer, contents, do_compression=True)
    return buffer.getvalue()


def archived(files: dict[str, bytes]) -> bytes:
    """A tar.gz archive of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def md5(contents: bytes) -> str:
    return hashlib.md5(contents, usedforsecurity=False).hexdigest()


def python2_pickle(value: object) -> bytes:
    """A pickle as Python 2 and NumPy 1 wrote it, which are the versions that CIFAR's files come from.

    Its strings are strings of bytes, which Python 3 gives as str or as bytes depending on `encoding`; the dtype of an
    array has integers where NumPy 2 has booleans.
    """
    return pickle.PROTO + b"\x02" + _opcodes(value) + pickle.STOP


def _opcodes(value: object) -> bytes:
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            return pickle.BININT + struct.pack("<i", value)
        case str():
            return _opcodes(value.encode())
        case bytes():
            return pickle.BINSTRING + struct.pack("<i", len(value)) + value
        case tuple():
            return pickle.MARK + b"".join(map(_opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_opcodes, value)) + pickle.APPENDS
        case dict():
            items = b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case np.ndarray():
            return _array_opcodes(value)
    raise TypeError(f"cannot pickle a {type(value)}")


def _array_opcodes(array: np.ndarray) -> bytes:
    """Pickle an array as NumPy does: create an empty array and a plain dtype, then set the state of both."""
    assert array.dtype == np.uint8
    dtype = b"cnumpy\ndtype\n" + _opcodes(("u1", 0, 1)) + pickle.REDUCE
    dtype += _opcodes((3, "|", None, None, None, -1, -1, 0)) + pickle.BUILD
    arguments = b"cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes("b")
    empty = b"cnumpy.core.multiarray\n_reconstruct\n" + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
    state = _opcodes(1) + _opcodes(array.shape) + dtype + _opcodes(False) + _opcodes(array.tobytes())
    return empty + pickle.MARK + state + pickle.TUPLE + pickle.BUILD


class Server:
    """A server in memory that replaces the network for urllib.

    Attributes:
        contents: Contents by address. Other addresses cannot be resolved.
        asked: The requested addresses, without repetition.
        on_read: Called before each piece is sent, to look at the disk or to raise an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes] | None = None):
        self.contents = contents or {}
        self.asked: list[str] = []
        self.on_read: Callable[[], object] = lambda: None
        monkeypatch.setattr(urllib.request, "urlopen", self._open)

    def _open(self, request: urllib.request.Request, timeout: float) -> "_Response":
        url = request.full_url
        if url not in self.asked:
            self.asked.append(url)
        if url not in self.contents:
            raise urllib.error.URLError("simulated name resolution failure")
        return _Response(self.contents[url], self)


class _Response(io.BytesIO):
    def __init__(self, contents: bytes, server: Server):
        super().__init__(contents)
        self.status = 200
        self.headers = email.message.Message()
        self.headers["Content-Type"] = "application/octet-stream"
        self.headers["Content-Length"] = str(len(contents))
        self.server = server

    def read1(self, size: int | None = -1) -> bytes:
        self.server.on_read()
        return super().read1(size)
