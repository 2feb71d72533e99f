"""The files of a data set: found, verified by their md5 digests, unpacked or downloaded where they are missing."""

import os
import shutil
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url

from data.errors import CorruptedData, DataError, MissingData, NoNetwork

SILENT_SERVER_SECONDS = 30  # a download that receives nothing for so long has failed


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: Where it belongs, relative to the data folder, with "/" between its parts.
        md5: Its digest.
        url: Where it, or the archive that holds it, can be downloaded from.
    """

    path: str
    md5: str
    url: str


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
        DataError: If the system denies access.
    """
    try:
        _check_folder(folder, archive or members[0], download)
        missing = [member for member in members if not _verified(folder, member)]
        if archive is None:
            for member in missing:
                _fetch(folder, member, download)
        elif missing:
            if not _verified(folder, archive):
                _fetch(folder, archive, download, wanted=missing[0])
            _unpack(folder, archive, missing)
    except OSError as error:
        raise DataError(f"cannot use the data folder {folder}: {error}") from error


def _check_folder(folder: Path, wanted: File, download: bool) -> None:
    """Refuse a data folder that is a file, or that does not exist though nothing may be downloaded."""
    if folder.is_dir() or (download and not folder.exists()):
        return
    what = "is not a folder" if folder.exists() else "does not exist"
    raise MissingData(f"the data folder {folder} {what}; --data names the one with {wanted.path} from {wanted.url}")


def _verified(folder: Path, file: File) -> bool:
    """Whether a file is there. Raises CorruptedData if it is there with other contents."""
    path = folder / file.path
    if not path.exists():
        return False
    if not path.is_file():
        raise CorruptedData(f"{path} is not a file; move it away and get the file from {file.url}")
    if not check_integrity(path, file.md5):
        raise CorruptedData(
            f"{path} is corrupted: its md5 digest is not {file.md5}; delete it and get it again from {file.url}"
        )
    return True


def _unpack(folder: Path, archive: File, missing: list[File]) -> None:
    """Take the missing members out of a verified archive. Nothing else that it holds is written anywhere."""
    path = folder / archive.path
    wanted = {member.path: member for member in missing}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for entry in tar:
                if entry.isfile() and entry.name in wanted:
                    member = wanted.pop(entry.name)
                    with _put_in_place(folder, member, sender=path) as partial, partial.open("wb") as file:
                        shutil.copyfileobj(tar.extractfile(entry), file)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptedData(f"{path} cannot be unpacked: {error}; get it again from {archive.url}") from error
    if wanted:
        raise CorruptedData(f"{path} does not hold {min(wanted)}; get it again from {archive.url}")


def _fetch(folder: Path, file: File, download: bool, wanted: File | None = None) -> None:
    """Download a file."""
    path = folder / file.path
    if not download:
        either = f"{folder / wanted.path} is missing, and so is {path}" if wanted else f"{path} is missing"
        raise MissingData(f"{either}; get it from {file.url} and put it there, or allow --download True")
    print(f"Downloading {file.url} to {str(path)!r}")  # as the name of a folder may hold anything
    with _put_in_place(folder, file, sender=file.url) as partial:
        try:
            with _socket_timeout(SILENT_SERVER_SECONDS):
                download_url(file.url, partial.parent, filename=partial.name)
        except (OSError, HTTPException) as error:  # URLError and HTTPError are OSErrors, as is a full disk
            raise NoNetwork(
                f"cannot download {file.url}: {error}; get the file elsewhere and put it at {path}"
            ) from error


@contextmanager
def _put_in_place(folder: Path, file: File, sender: object) -> Iterator[Path]:
    """Give a temporary path to write a file to; with the right digest it then gets the file's own name.

    If anything goes wrong, what was written is removed, and so are the folders that were made for it.
    """
    path = folder / file.path
    partial = path.with_name(f"{path.name}.part")
    new_folders = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        yield partial
        if not check_integrity(partial, file.md5):
            raise CorruptedData(
                f"{path} is not kept: what came from {sender} has another md5 digest than {file.md5}; "
                f"the original is at {file.url}"
            )
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
            for new_folder in new_folders:
                new_folder.rmdir()
        raise


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
