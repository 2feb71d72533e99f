"""The files of a data set: found, verified by their md5 digests, unpacked or downloaded where they are missing."""

import os
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from data.errors import CorruptedData, DataError, MissingData, NoNetwork

SILENT_SERVER_SECONDS = 30  # a download that receives nothing for so long has failed


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: Where it belongs, relative to the data folder.
        md5: Its digest.
        url: Where it can be downloaded from, or None for a member of an archive.
    """

    path: str
    md5: str
    url: str | None = None


def ensure(folder: Path, *, members: list[File], archive: File | None, download: bool) -> None:
    """Make sure that all files of a data set lie in `folder` and are what they should be.

    Members that are missing come out of the archive, if the data set has one, or are downloaded. Nothing that is
    there is changed: a file with other contents is an error, not a reason to replace it.

    Args:
        folder: The data folder, made for a download if it does not exist.
        members: The files that are read later.
        archive: The archive that holds all members, or None if the members are downloaded one by one.
        download: Whether the network may be used.

    Raises:
        MissingData: If a file is not there and may not be downloaded.
        CorruptedData: If a file has another md5 digest than it should.
        NoNetwork: If a download fails.
    """
    if not download:
        _require_folder(folder)
    try:
        missing = [member for member in members if not _verified(folder, member)]
        if missing and archive is not None:
            _unpack(folder, archive, missing[0], download)
            missing = [member for member in members if not _verified(folder, member)]
            if missing:
                raise CorruptedData(f"{folder / archive.path} does not hold {missing[0].path}; replace the archive")
        for member in missing:
            _fetch(folder, member, download)
    except OSError as error:
        raise DataError(f"cannot use the data folder {folder}: {error}") from error


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise MissingData(f"the data folder {folder} {what}; --data names the folder that holds the data set")


def _verified(folder: Path, file: File) -> bool:
    """Whether a file is there. Raises CorruptedData if it is there with other contents."""
    path = folder / file.path
    if not path.exists():
        return False
    if not path.is_file():
        raise CorruptedData(f"{path} is not a file; move it away")
    if not check_integrity(path, file.md5):
        source = f"download it again from {file.url}" if file.url else "it will be taken from the archive again"
        raise CorruptedData(f"{path} is corrupted: its md5 digest is not {file.md5}; delete it, then {source}")
    return True


def _unpack(folder: Path, archive: File, wanted: File, download: bool) -> None:
    """Extract a verified archive, fetched first if it is not there."""
    if not _verified(folder, archive):
        _fetch(folder, archive, download, wanted)
    try:
        extract_archive(str(folder / archive.path), str(folder))
    except (tarfile.TarError, EOFError) as error:
        raise CorruptedData(f"{folder / archive.path} cannot be unpacked: {error}") from error


def _fetch(folder: Path, file: File, download: bool, wanted: File | None = None) -> None:
    """Download a file under a temporary name, verify it and only then give it its own name."""
    path = folder / file.path
    if not download:
        either = f"{folder / wanted.path} is missing, and so is {path}" if wanted else f"{path} is missing"
        raise MissingData(f"{either}; get it from {file.url} and put it there, or allow --download True")
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    print(f"Downloading {file.url} to {path}")
    try:
        with _socket_timeout(SILENT_SERVER_SECONDS):
            download_url(file.url, folder, filename=partial.name)
    except OSError as error:  # URLError and HTTPError are OSErrors, as is a full disk
        partial.unlink(missing_ok=True)
        raise NoNetwork(f"cannot download {file.url}: {error}; get the file elsewhere and put it at {path}") from error
    if not check_integrity(partial, file.md5):
        partial.unlink()
        raise CorruptedData(f"{file.url} sent a file whose md5 digest is not {file.md5}; get {path} elsewhere")
    os.replace(partial, path)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
