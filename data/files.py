"""Find the files of a data set, verify their md5 digests, and unpack or download those that are missing."""

import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.download.downloads import Downloads
from data.errors import CorruptedData, DataError, MissingData, listed
from data.known_files import File, folder_for, give_name, has_digest

LEFTOVER_SECONDS = 24 * 3600  # no program takes a day between two writes to a file


def ensure(
    folder: Path,
    *,
    members: list[File],
    archive: File | None,
    download: bool,
    downloads: Downloads | None = None,
) -> None:
    """Make sure that all files of a data set are in `folder` and have the right contents.

    Missing members are unpacked from the archive, if the data set has one, or downloaded. Existing files are never
    changed: other contents are an error, not a reason to replace a file. Several processes may do this at the same
    time; they use the files that another one has put in place.

    Args:
        folder: The data folder, created for a download if it does not exist.
        members: The files that are read later.
        archive: The archive that contains all members. None: the members are downloaded one by one.
        download: Whether the network may be used.
        downloads: How to download. None: with defaults.

    Raises:
        MissingData: If files are missing and may not be downloaded.
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
            _fetch(folder, file, downloads or Downloads())
        if archive and missing:
            _unpack(folder, archive, missing)
        _clear_leftovers(folder, [*members, archive] if archive else members)
    except OSError as error:
        raise DataError(f"cannot use the data folder {folder}: {error}") from error


def holds_some(folder: Path, names: Iterable[str]) -> bool:
    """Return whether a folder can be read and has a file of at least one of these names."""
    with suppress(OSError):
        return any((folder / name).is_file() for name in names)
    return False


def _check_folder(folder: Path, wanted: File, download: bool) -> None:
    """Raise an error if the data folder is a file, or does not exist and must not be created for a download."""
    if folder.is_dir() or (download and not folder.exists()):
        return
    what = "is not a folder" if folder.exists() else "does not exist"
    raise MissingData(f"the data folder {folder} {what}; --data names the one with {wanted.path} from {wanted.url}")


def _missing(folder: Path, files: list[File]) -> list[File]:
    """Return the files that do not exist.

    Raises:
        CorruptedData: If some exist with other contents. It names all of them.
    """
    there = [file for file in files if (folder / file.path).exists()]
    strange = [file for file in there if not (folder / file.path).is_file()]
    corrupted = [file for file in there if file not in strange and not has_digest(folder / file.path, file.md5)]
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
    """Return words for a sentence about some files: paths, addresses, "is" or "are", "it" or "them"."""
    paths, urls = listed([folder / file.path for file in files]), listed([*dict.fromkeys(file.url for file in files)])
    return (paths, urls, "is", "it") if len(files) == 1 else (paths, urls, "are", "them")


def _say_missing(folder: Path, missing: list[File], archive: File | None) -> str:
    """Describe the missing files, where they belong and where to get them."""
    paths, urls, are, them = _words(folder, missing)
    line = f"{paths} {are} missing"
    if archive:
        line, them = f"{line}, and so is {folder / archive.path}", "it"
    return f"{line}; get {them} from {urls} and put {them} there, or allow --download True"


def _unpack(folder: Path, archive: File, missing: list[File]) -> None:
    """Unpack the missing members of a verified archive, and nothing else that it contains."""
    path = folder / archive.path
    wanted = {member.inside or member.path: member for member in missing}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for entry in tar:
                if entry.isfile() and entry.name in wanted:
                    member = wanted.pop(entry.name)
                    if not _missing(folder, [member]):  # another process was faster
                        continue
                    source = tar.extractfile(entry)
                    assert source is not None  # for a regular file
                    with _put_in_place(folder, member, sender=path) as partial, partial.open("xb") as file:
                        shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptedData(f"{path} cannot be unpacked: {error}; get it again from {archive.url}") from error
    if wanted:
        raise CorruptedData(f"{path} does not hold {listed(sorted(wanted))}; get it again from {archive.url}")


def _fetch(folder: Path, file: File, downloads: Downloads) -> None:
    """Download a file, and make sure that it is the right one, whoever has put it in place."""
    from data.download.transfer import fetch

    fetch(folder / file.path, file, downloads)
    _missing(folder, [file])


@contextmanager
def _put_in_place(folder: Path, file: File, sender: object) -> Iterator[Path]:
    """Yield a temporary path for writing a file. With the right digest the file then gets its own name.

    No other call uses the path. If another process has put the file in place in the meantime, that file stays. After
    an error the temporary file is removed, and so are the folders that were created for it.
    """
    path = folder / file.path
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    with folder_for(path):
        try:
            yield partial
            if _missing(folder, [file]):
                if not has_digest(partial, file.md5):
                    raise CorruptedData(
                        f"{path} is not kept: what came from {sender} has another md5 digest than {file.md5}; "
                        f"the original is at {file.url}"
                    )
                give_name(partial, path, file.md5)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _clear_leftovers(folder: Path, files: list[File]) -> None:
    """Remove temporary files that killed processes have left, but none that another process may still be writing."""
    oldest = time.time() - LEFTOVER_SECONDS
    for parent in {(folder / file.path).parent for file in files}:
        names = "|".join(re.escape(Path(file.path).name) for file in files if (folder / file.path).parent == parent)
        with suppress(OSError):  # the folder may be read-only
            for path in parent.iterdir():
                if re.fullmatch(rf"({names})(\.[0-9a-f]{{16}})?\.part", path.name) and path.stat().st_mtime < oldest:
                    path.unlink()
