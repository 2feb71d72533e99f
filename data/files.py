"""The files of a data set: found, verified by their md5 digests, unpacked or downloaded where they are missing."""

import os
import re
import secrets
import shutil
import socket
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import check_integrity, download_url

from data.errors import CorruptedData, DataError, MissingData, NoNetwork, listed

SILENT_SERVER_SECONDS = 30  # a download that receives nothing for so long has failed
LEFTOVER_SECONDS = 24 * 3600  # no program writes to a file for a day without a change


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: Where it belongs, relative to the data folder, with "/" between its parts.
        md5: Its digest.
        url: Where it, or the archive that holds it, can be downloaded from.
        inside: Its path in the archive that holds it. Empty: the same as `path`.
    """

    path: str
    md5: str
    url: str
    inside: str = ""


def ensure(folder: Path, *, members: list[File], archive: File | None, download: bool) -> None:
    """Make sure that all files of a data set lie in `folder` and are what they should be.

    Members that are missing come out of the archive, if the data set has one, or are downloaded. Nothing that is
    there is changed: a file with other contents is an error, not a reason to replace it. Several processes may do this
    at the same time; what one has put in place is taken by the others.

    Args:
        folder: The data folder, made for a download if it does not exist.
        members: The files that are read later.
        archive: The archive that holds all members, or None if the members are downloaded one by one.
        download: Whether the network may be used.

    Raises:
        MissingData: If files are not there and may not be downloaded.
        CorruptedData: If files have other md5 digests than they should.
        NoNetwork: If a download fails.
        DataError: If the system denies access.
    """
    try:
        _check_folder(folder, archive or members[0], download)
        missing = _missing(folder, members)
        sources = _missing(folder, [archive]) if archive and missing else missing
        if sources and not download:
            raise MissingData(_say_missing(folder, missing, archive))
        for file in sources:
            _fetch(folder, file)
        if archive and missing:
            _unpack(folder, archive, missing)
        _clear_leftovers(folder, [*members, archive] if archive else members)
    except OSError as error:
        raise DataError(f"cannot use the data folder {folder}: {error}") from error


def holds_some(folder: Path, names: Iterable[str]) -> bool:
    """Whether files of some of these names lie in a folder; if it cannot be read, none does."""
    with suppress(OSError):
        return any((folder / name).is_file() for name in names)
    return False


def _check_folder(folder: Path, wanted: File, download: bool) -> None:
    """Refuse a data folder that is a file, or that does not exist though nothing may be downloaded."""
    if folder.is_dir() or (download and not folder.exists()):
        return
    what = "is not a folder" if folder.exists() else "does not exist"
    raise MissingData(f"the data folder {folder} {what}; --data names the one with {wanted.path} from {wanted.url}")


def _missing(folder: Path, files: list[File]) -> list[File]:
    """The files that are not there.

    Raises:
        CorruptedData: If some are there, but with other contents. It names all of them.
    """
    there = [file for file in files if (folder / file.path).exists()]
    strange = [file for file in there if not (folder / file.path).is_file()]
    corrupted = [file for file in there if file not in strange and not check_integrity(folder / file.path, file.md5)]
    problems = []
    if strange:
        paths, urls, are, them = _words(folder, strange)
        file = "a file" if len(strange) == 1 else "files"
        problems.append(f"{paths} {are} not {file}; move {them} away and get the data from {urls}")
    if corrupted:
        paths, urls, are, them = _words(folder, corrupted)
        digests = listed([file.md5 for file in corrupted])
        digest = "its md5 digest is" if len(corrupted) == 1 else "their md5 digests are"
        problems.append(
            f"{paths} {are} corrupted: {digest} not {digests}; delete {them} and get {them} again from {urls}"
        )
    if problems:
        raise CorruptedData("; ".join(problems))
    return [file for file in files if file not in there]


def _words(folder: Path, files: list[File]) -> tuple[str, str, str, str]:
    """The words of a sentence about some files: paths, addresses, "is" or "are", "it" or "them"."""
    paths, urls = listed([folder / file.path for file in files]), listed([*dict.fromkeys(file.url for file in files)])
    return (paths, urls, "is", "it") if len(files) == 1 else (paths, urls, "are", "them")


def _say_missing(folder: Path, missing: list[File], archive: File | None) -> str:
    """A line about all that is missing, where it belongs and where to get it."""
    paths, urls, are, them = _words(folder, missing)
    line = f"{paths} {are} missing"
    if archive:
        line, them = f"{line}, and so is {folder / archive.path}", "it"
    return f"{line}; get {them} from {urls} and put {them} there, or allow --download True"


def _unpack(folder: Path, archive: File, missing: list[File]) -> None:
    """Take the missing members out of a verified archive. Nothing else that it holds is written anywhere."""
    path = folder / archive.path
    wanted = {member.inside or member.path: member for member in missing}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for entry in tar:
                if entry.isfile() and entry.name in wanted:
                    member = wanted.pop(entry.name)
                    if not _missing(folder, [member]):  # another process was faster
                        continue
                    with _put_in_place(folder, member, sender=path) as partial, partial.open("xb") as file:
                        shutil.copyfileobj(tar.extractfile(entry), file)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptedData(f"{path} cannot be unpacked: {error}; get it again from {archive.url}") from error
    if wanted:
        raise CorruptedData(f"{path} does not hold {listed(sorted(wanted))}; get it again from {archive.url}")


def _fetch(folder: Path, file: File) -> None:
    """Download a file."""
    path = folder / file.path
    print(f"Downloading {file.url} to {str(path)!r}")  # as the name of a folder may hold anything
    with _put_in_place(folder, file, sender=file.url) as partial:
        try:
            with _socket_timeout(SILENT_SERVER_SECONDS):
                download_url(file.url, partial.parent, filename=partial.name)
        except (OSError, HTTPException) as error:  # URLError and HTTPError are OSErrors, as is a full disk
            if _missing(folder, [file]):
                raise NoNetwork(
                    f"cannot download {file.url}: {error}; get the file elsewhere and put it at {path}"
                ) from error


@contextmanager
def _put_in_place(folder: Path, file: File, sender: object) -> Iterator[Path]:
    """Give a temporary path to write a file to; with the right digest it then gets the file's own name.

    The path is of this call alone. If another process has put the file in place meanwhile, that one stays. If anything
    goes wrong, what was written is removed, and so are the folders that were made for it.
    """
    path = folder / file.path
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    new_folders = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if _missing(folder, [file]):
            if not check_integrity(partial, file.md5):
                raise CorruptedData(
                    f"{path} is not kept: what came from {sender} has another md5 digest than {file.md5}; "
                    f"the original is at {file.url}"
                )
            _rename(partial, path, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
            for new_folder in new_folders:
                new_folder.rmdir()
        raise
    partial.unlink(missing_ok=True)


def _rename(partial: Path, path: Path, file: File) -> None:
    """Give a whole file its name. Windows refuses that while another process reads the same file under this name."""
    try:
        os.replace(partial, path)
    except OSError:
        if not check_integrity(path, file.md5):
            raise


def _clear_leftovers(folder: Path, files: list[File]) -> None:
    """Remove what killed processes have left of these files; what others may be writing at this moment stays."""
    oldest = time.time() - LEFTOVER_SECONDS
    for parent in {(folder / file.path).parent for file in files}:
        names = "|".join(re.escape(Path(file.path).name) for file in files if (folder / file.path).parent == parent)
        with suppress(OSError):  # as where nothing may be written
            for path in parent.iterdir():
                if re.fullmatch(rf"({names})(\.[0-9a-f]{{16}})?\.part", path.name) and path.stat().st_mtime < oldest:
                    path.unlink()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
