"""Where training, validation and test images lie in a data folder, under the names that people give these folders."""

from pathlib import Path

from data.errors import DataError, MissingData, listed
from data.find import count_images, entries, is_folder, is_ignored

LAYOUT = "--data needs train/ with a folder for each class, and test/ or val/ with the same folders"

# By use, the names that programs which export data sets write; in any case.
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}

FILES_LOOKED_AT = 10_000  # in a folder that is not used, to say how many images it has; a fraction of a second


def find_uses(folder: Path) -> dict[str, Path]:
    """The folders for train, val and test that are there, in this order: the first, and one or both of the others.

    Raises:
        MissingData: If one that is needed is not there.
        DataError: If two are for the same use, or the folder cannot be read.
    """
    uses = {}
    there = subfolders(folder)
    for use, names in NAMES.items():
        of_use = [name for name in there if name.lower() in names]
        if len(of_use) > 1:
            raise DataError(f"{folder} has {listed(of_use)}, which are names for the same use; keep one of them")
        if of_use:
            uses[use] = folder / of_use[0]
    if "train" not in uses:
        raise MissingData(f"there is no folder {folder / 'train'}; {LAYOUT}{_nearest(folder)}")
    if len(uses) == 1:
        raise MissingData(f"there is no folder {folder / 'test'}; {LAYOUT}")
    return uses


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that are hidden or a system's own.

    Raises:
        DataError: If it cannot be read.
    """
    return [entry.name for entry in entries(folder) if is_folder(entry) and not is_ignored(entry.name)]


def images_in(folder: Path) -> str:
    """Say how many images lie in a folder and below it: "no image", "1 image", "12 images" or "many images"."""
    number, is_all = count_images(folder, most_files=FILES_LOOKED_AT)
    if not is_all:
        return "many images" if number else "many files"
    return f"{number or 'no'} image{'' if number < 2 else 's'}"


def beside(folder: Path, uses: dict[str, Path]) -> list[str]:
    """Name everything in a data folder that is not used; of a folder, say how many images it has."""
    used = {path.name for path in uses.values()}
    return [
        f"{entry.name}/ ({images_in(Path(entry.path))})" if is_folder(entry) else entry.name
        for entry in entries(folder)
        if entry.name not in used and not is_ignored(entry.name)
    ]


def _nearest(folder: Path) -> str:
    """The folder above or below that has training images, as advice; nothing if there is none, or more than one."""
    above = folder.absolute().parent
    candidates = [path for path in (folder / name for name in subfolders(folder)) if _has_train(path)]
    if folder.absolute().name.lower() in sum(NAMES.values(), ()) and _has_train(above):
        candidates.append(above)
    return f"; did you mean --data {candidates[0]}?" if len(candidates) == 1 else ""


def _has_train(folder: Path) -> bool:
    try:
        return any(name.lower() in NAMES["train"] for name in subfolders(folder))
    except DataError:
        return False
