"""The data sets: where each comes from, how its images are read, and how they are prepared.

To add one, write a function that reads it and an entry in `DATASETS`; the command line takes the names from there. For
its sake importing this file is quick: functions import torch and torchvision, which take seconds, where they need them.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.download.downloads import Downloads, MakeByteBar, NoBar
from data.errors import DataError, MissingData
from data.files import ensure, holds_some
from data.known_files import File

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

    from data.splits import Dataset

IMAGE_SIZE = 32  # height and width of the images of every data set whose size is not free
# Bytes of what is downloaded, by md5 digest.
SIZES = {
    "c58f30108f718f92721af3b95e74349a": 170_498_071,  # cifar-10-python.tar.gz
    "eb9058c3a382ffc7106e4002c42a8d85": 169_001_437,  # cifar-100-python.tar.gz
    "e26dedcc434d2e4c54c9b2d4a06d8373": 182_040_794,  # train_32x32.mat
    "a93ce644f1a588dc4d68dda5feec44a7": 1_329_278_602,  # extra_32x32.mat
    "eb5a983be6a315427106f1b164d9cef3": 64_275_384,  # test_32x32.mat
}


@dataclass(frozen=True)
class Request:
    """Where and how to read a data set.

    Attributes:
        folder: The folder of its files. Ignored by a data set that needs none.
        download: Whether missing files may be downloaded.
        image_size: Height and width of the batches.
        channels: Channels of the batches.
        downloads: How missing files are downloaded.
    """

    folder: Path
    download: bool
    image_size: int
    channels: int
    downloads: Downloads


@dataclass(frozen=True)
class DatasetSpec:
    """How a data set is read and prepared: as in the paper, and a user's own images as is usual.

    Attributes:
        read: Reads the data set.
        needs_folder: Whether its files are in a folder of the user's.
        mean: Mean of each channel, of pixels divided by 255.
        std: Standard deviation of each channel, of pixels divided by 255.
        valid_size: Default number of training images to hold out for validation. None: one tenth of them.
        augment: Whether training images are cropped and flipped by default.
        grey: Whether all images are grey. Other images then lose their colours in prediction.
        free_size: Whether the user chooses the size of the images.
        has_downloads: Whether files of it that are missing can be downloaded.
        channels: The numbers of channels that its images can be read with. None: the user's files decide.
    """

    read: "Callable[[Request], Dataset]"
    needs_folder: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    valid_size: int | None
    augment: bool
    grey: bool = False
    free_size: bool = False
    has_downloads: bool = False
    channels: tuple[int, ...] | None = (3,)


def load(
    name: str,
    *,
    folder: Path | None,
    download: bool,
    image_size: int = IMAGE_SIZE,
    channels: int = 3,
    notify: Callable[[str], object] = print,
    mirrors: str | None = None,
    bar: MakeByteBar = NoBar,
) -> "Dataset":
    """Read all images of a data set into memory, or for "folder" find their files.

    Args:
        name: A key of `DATASETS`.
        folder: The folder of its files, to which missing ones are downloaded. "digits" needs none.
        download: Whether missing files may be downloaded.
        image_size: Height and width of the batches.
        channels: Channels of the batches: 1 for grey, 3 for RGB, others for the user's own arrays.
        notify: Takes lines for the user about downloads.
        mirrors: Addresses of folders that may hold the missing files, with commas between them. They are tried first.
        bar: Creates the progress bars of downloads.

    Raises:
        DataError: If files are missing (MissingData) or corrupted (CorruptedData) or a download fails (NoNetwork). The
            message names the file, where it belongs and where to get it. Also if the images have another size or other
            channels.
    """
    spec = DATASETS[name]
    if not spec.free_size and image_size != IMAGE_SIZE:
        raise DataError(f"--image_size is {image_size}, but the images of {name} are {IMAGE_SIZE}x{IMAGE_SIZE}")
    require_channels(name, channels)
    if mirrors and not spec.has_downloads:
        raise DataError(f"--data_url is {mirrors}, but nothing of --dataset {name} is downloaded; leave the flag out")
    if spec.needs_folder and folder is None:
        holds = "train/ and test/" if name == "folder" else "its files or is where to download them"
        raise MissingData(f"--dataset {name} needs --data FOLDER, which holds {holds}")
    urls = tuple(mirrors.split(",")) if mirrors else ()
    return spec.read(Request(folder or Path(), download, image_size, channels, Downloads(urls, notify, bar)))


def require_channels(name: str, channels: int) -> None:
    """Make sure that the images of a data set can be read with this number of channels, as far as its name tells.

    Raises:
        DataError: If they cannot.
    """
    allowed = DATASETS[name].channels
    if allowed is not None and channels not in allowed:
        numbers = " or ".join(map(str, allowed))
        raise DataError(f"--in_channels is {channels}, but must be {numbers} for --dataset {name}")


def validation_size(dataset: "Dataset", spec: DatasetSpec, asked: int | None) -> int | None:
    """Return how many training images to hold out for validation.

    Args:
        dataset: The data set.
        spec: Gives the default number.
        asked: The number that the user asks for. None: the default.

    Returns:
        The number, or None if the data set comes with validation images.

    Raises:
        DataError: If it comes with validation images and some are asked for.
    """
    if dataset.valid is not None:
        if asked is not None:
            raise DataError(
                f"--valid_size is {asked}, but the data set has {len(dataset.valid):,} validation images of its own; "
                "leave the flag out"
            )
        return None
    default = max(1, len(dataset.train) // 10) if spec.valid_size is None else spec.valid_size
    return default if asked is None else asked


def _read_cifar10(request: Request) -> "Dataset":
    """Read CIFAR-10 from its folder `cifar-10-batches-py`, given itself or by its parent, or from its archive."""
    from torchvision.datasets import CIFAR10

    return _read_cifar(CIFAR10, request)


def _read_cifar100(request: Request) -> "Dataset":
    """Read CIFAR-100, fine labels, from its folder `cifar-100-python`, itself or by its parent, or from its archive."""
    from torchvision.datasets import CIFAR100

    return _read_cifar(CIFAR100, request)


def _read_cifar(reader: "type[CIFAR10]", request: Request) -> "Dataset":
    from data.splits import Dataset, Split

    digests = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    inside = {filename: f"{reader.base_folder}/{filename}" for filename, _ in digests}
    if holds_some(request.folder, inside):  # the folder of the files itself
        reader = type(reader.__name__, (reader,), {"base_folder": ""})
    ensure(
        request.folder,
        members=[
            File((Path(reader.base_folder) / filename).as_posix(), md5, reader.url, inside[filename])
            for filename, md5 in digests
        ],
        archive=File(reader.filename, reader.tgz_md5, reader.url, size=SIZES.get(reader.tgz_md5)),
        download=request.download,
        downloads=request.downloads,
    )
    with warnings.catch_warnings():
        # The files were pickled long ago. NumPy 2.4.0 to 2.4.4 warn about the form of their dtypes.
        warnings.filterwarnings("ignore", message=".*align should be passed as Python or NumPy boolean")
        train, test = (reader(request.folder, train=is_train) for is_train in (True, False))
    splits = [Split.from_arrays(data.data.transpose(0, 3, 1, 2), data.targets) for data in (train, test)]
    return Dataset(splits[0], splits[1], tuple(train.classes))


def _read_svhn(request: Request) -> "Dataset":
    """Read SVHN from `{train,extra,test}_32x32.mat`. The paper trains on train and extra together."""
    import torch
    from torchvision.datasets import SVHN

    from data.splits import Dataset, Split

    members = [File(filename, md5, url, size=SIZES.get(md5)) for url, filename, md5 in SVHN.split_list.values()]
    ensure(request.folder, members=members, archive=None, download=request.download, downloads=request.downloads)

    def read_part(name: str) -> Split:
        part = SVHN(request.folder, split=name)
        return Split.from_arrays(part.data, part.labels)

    train, extra, test = map(read_part, ("train", "extra", "test"))
    both = Split(torch.cat([train.images, extra.images]), torch.cat([train.labels, extra.labels]))
    return Dataset(both, test, tuple("0123456789"))


def _read_digits(request: Request) -> "Dataset":
    """Read scikit-learn's 1,797 handwritten digits, enlarged from 8x8 grey pixels to 32x32, in one channel or three.

    They are part of the package. Every fifth image of each class is a test image: the data set has no official split,
    and the same 13 writers are in both parts.
    """
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    from data.splits import Dataset, Split

    values, labels = load_digits(return_X_y=True)  # (N, 64) from 0 to 16, (N,)
    pixels = torch.as_tensor(values).float().view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    every = Split(images.expand(-1, request.channels, -1, -1).contiguous(), torch.as_tensor(labels).long())
    occurrence = F.one_hot(every.labels).cumsum(0).gather(1, every.labels[:, None]).squeeze(1)  # 1, 2, ... per class
    is_test = occurrence % 5 == 0
    train, test = (every.take(chosen.nonzero().squeeze(1)) for chosen in (~is_test, is_test))
    return Dataset(train, test, tuple("0123456789"))


def _read_folder(request: Request) -> "Dataset":
    """Find a user's own images, see `data.folder`."""
    from data.folder import read_folder

    return read_folder(request.folder, image_size=request.image_size, channels=request.channels)


# Means and standard deviations of CIFAR are over all pixels of the training images. The paper only divides SVHN by 255.
# For digits they are over the enlarged training images; a test computes them again. For a user's own images they are
# ImageNet's, with which torchvision's weights were trained. `data.normalisation` has those for other channels.
DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec(
        _read_cifar10,
        True,
        (0.49140, 0.48216, 0.44653),
        (0.24703, 0.24349, 0.26159),
        valid_size=5000,
        augment=True,
        has_downloads=True,
    ),
    "cifar100": DatasetSpec(
        _read_cifar100,
        True,
        (0.50708, 0.48655, 0.44092),
        (0.26733, 0.25644, 0.27615),
        valid_size=5000,
        augment=True,
        has_downloads=True,
    ),
    "svhn": DatasetSpec(
        _read_svhn, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), valid_size=6000, augment=False, has_downloads=True
    ),
    "digits": DatasetSpec(
        _read_digits,
        False,
        (0.30511, 0.30511, 0.30511),
        (0.32382, 0.32382, 0.32382),
        valid_size=140,
        augment=False,
        grey=True,
        channels=(1, 3),
    ),
    "folder": DatasetSpec(
        _read_folder,
        True,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        valid_size=None,
        augment=True,
        free_size=True,
        channels=None,
    ),
}
