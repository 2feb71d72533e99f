"""Read a folder of the user's own images, with a folder for each split and in it one for each class.

    DIR/train/<class>/...    training images
    DIR/test/<class>/...     test images, used once, at the end
    DIR/val/<class>/...      validation images, or without a test/ the test images

If only one of test/ and val/ exists, validation images are held out of the training images. Files may lie in the folder
of their class or anywhere below it. Other common names of the three folders are accepted, see `SPLIT_NAMES`.

The images are image files, or, if train/ has none of these, .npy files with any number of channels.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.arrays import SUFFIX, count_channels
from data.decode import COLOURS
from data.errors import DataError, MissingData, listed
from data.images import ImageFiles
from data.splits import Dataset
from data.walk import (
    FoundFiles,
    count_images,
    entries,
    find_images,
    is_folder,
    is_ignored,
    is_named_as_image,
    subfolders,
)

LAYOUT = "--data needs train/ with a folder for each class, and test/ or val/ with the same folders"

# By split, the names that programs which export data sets give its folder, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}

FILES_LOOKED_AT = 10_000  # in a folder that is not used, to count its images in a fraction of a second


@dataclass(frozen=True)
class SplitFolder:
    """The contents of train/, val/ or test/.

    Attributes:
        folder: Path of the folder.
        found: The files of each class.
        outside: Paths of entries that are in no folder of a class.
        arrays: Whether its images are .npy files.
    """

    folder: Path
    found: dict[str, FoundFiles]
    outside: list[str]
    arrays: bool

    @property
    def has_images(self) -> bool:
        """Whether a class has an image."""
        return any(found.images for found in self.found.values())

    @property
    def empty_classes(self) -> list[str]:
        """The classes without an image."""
        return [name for name, found in self.found.items() if not found.images]

    @property
    def skipped(self) -> list[str]:
        """Paths of all entries that are not used."""
        return [*self.outside, *(path for found in self.found.values() for path in found.skipped)]

    def labelled(self, *, image_size: int, channels: int) -> ImageFiles:
        """Return all images, class by class, labelled with the index of their class."""
        paths = tuple(path for found in self.found.values() for path in found.images)
        counts = torch.tensor([len(found.images) for found in self.found.values()])
        return ImageFiles(paths, torch.arange(len(counts)).repeat_interleave(counts), image_size, channels)


def read_folder(folder: Path, *, image_size: int, channels: int = 3) -> Dataset:
    """Find all images below a folder, without decoding them. The docstring of this file describes the layout.

    Args:
        folder: The folder DIR.
        image_size: Height and width S of the batches.
        channels: Channels of the batches.

    Raises:
        MissingData: If a folder is missing.
        DataError: If there are fewer than 2 classes, some have no training image, val/ or test/ have others or no image
            at all, or something cannot be read. The message names all of these. Also if the images cannot have that
            many channels.
    """
    folders = _find_splits(folder)
    classes = subfolders(folders["train"])
    if len(classes) < 2:
        raise DataError(_say_too_few(folders["train"], classes))
    splits = _find_files(folders, classes)
    problems = [problem for split in splits for problem in _problems(split, is_train=split is splits[0])]
    if problems:
        raise DataError("; ".join(problems))
    train, *held_out, test = (split.labelled(image_size=image_size, channels=channels) for split in splits)
    _require_channels(train)
    notes = (
        *_notes(folder, splits),
        *_note_unused(folder, folders),
        *_note_similar_names(classes),
        *_note_channels(train),
    )
    return Dataset(train, test, tuple(classes), valid=held_out[0] if held_out else None, notes=notes)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their labels, without looking for images.

    Args:
        folder: The folder DIR.

    Raises:
        MissingData: If a folder is missing.
        DataError: If it cannot be read.
    """
    return tuple(subfolders(_find_splits(folder)["train"]))


def _find_splits(folder: Path) -> dict[str, Path]:
    """Return the folders for train, val and test that exist, in this order: the first, and at least one of the others.

    Raises:
        MissingData: If a folder is missing.
        DataError: If there are two for the same split, or the folder cannot be read.
    """
    folders = {}
    names = subfolders(folder)
    for split, usual in SPLIT_NAMES.items():
        matches = [name for name in names if name.lower() in usual]
        if len(matches) > 1:
            raise DataError(f"{folder} has {listed(matches)}, which are names for the same use; keep one of them")
        if matches:
            folders[split] = folder / matches[0]
    if "train" not in folders:
        raise MissingData(f"there is no folder {folder / 'train'}; {LAYOUT}{_suggest_folder(folder)}")
    if len(folders) == 1:
        raise MissingData(f"there is no folder {folder / 'test'}; {LAYOUT}")
    return folders


def _suggest_folder(folder: Path) -> str:
    """Suggest the folder above or below that has training images. Return nothing unless there is exactly one."""
    above = folder.absolute().parent
    candidates = [path for path in (folder / name for name in subfolders(folder)) if _has_train(path)]
    if any(folder.absolute().name.lower() in names for names in SPLIT_NAMES.values()) and _has_train(above):
        candidates.append(above)
    return f"; did you mean --data {candidates[0]}?" if len(candidates) == 1 else ""


def _has_train(folder: Path) -> bool:
    try:
        return any(name.lower() in SPLIT_NAMES["train"] for name in subfolders(folder))
    except DataError:
        return False


def _find_files(folders: dict[str, Path], classes: list[str]) -> list[SplitFolder]:
    """Find the image files of all splits, or their .npy files if there are those and no image file in train/."""
    images = [_look_into(path, classes, arrays=False) for path in folders.values()]
    if images[0].has_images:
        return images
    arrays = [_look_into(path, classes, arrays=True) for path in folders.values()]
    return arrays if arrays[0].has_images else images


def _look_into(folder: Path, classes: list[str], *, arrays: bool) -> SplitFolder:
    """Find the images of all classes in train/, val/ or test/."""
    names = subfolders(folder)
    found = {name: find_images(folder / name, arrays=arrays) if name in names else FoundFiles() for name in classes}
    return SplitFolder(folder, found, [entry.path for entry in entries(folder) if entry.name not in names], arrays)


def _require_channels(train: ImageFiles) -> None:
    """Make sure that the files can be read with the channels that are asked for, by a look at the first one.

    Raises:
        DataError: If they cannot, or the first one is damaged.
    """
    given = f"--in_channels is {train.channels}"
    if train.are_arrays:
        found = count_channels(train.paths[0])
        if found != train.channels:
            raise DataError(f"{given}, but must be {found} for arrays like {train.paths[0]}")
    elif train.channels not in COLOURS:
        raise DataError(f"{given}, but must be 1 or 3 for image files; arrays in {SUFFIX} files may have any number")


def _say_too_few(folder: Path, classes: list[str]) -> str:
    """Describe a train/ that has no class or a single one."""
    count = f"{len(classes)} class folder{'' if len(classes) == 1 else 's'}"
    line = f"{folder} has {count}, but must have 2 or more; {LAYOUT}"
    inside = subfolders(folder / classes[0]) if classes else []
    if len(inside) > 1:
        return f"{line}; {listed(inside)} in {folder / classes[0]} look like classes: move them into {folder}"
    loose = _count_loose_images(folder)
    return f"{line}; {loose} in it lie in no class's folder, and so have no labels" if loose else line


def _problems(split: SplitFolder, *, is_train: bool) -> Iterator[str]:
    """Yield a line for each reason why train/, val/ or test/ cannot be used."""
    names = subfolders(split.folder)
    unknown = sorted(set(names) - set(split.found))
    empty = split.empty_classes
    if unknown:
        yield _say_unknown(split.folder, unknown, list(split.found))
    if not names:
        loose = _count_loose_images(split.folder)
        holds = f"but {loose}: they have no labels; rename it, or use predict" if loose else f"and no image; {LAYOUT}"
        yield f"{split.folder} has no class folders, {holds}"
    elif empty and (is_train or len(empty) == len(split.found)) and not unknown:
        yield _say_empty(split, empty if is_train else [name for name in empty if name in names])
    unreadable = [path for found in split.found.values() for path in found.unreadable]
    if unreadable:
        yield _say_unreadable(unreadable)


def _say_unreadable(paths: list[str]) -> str:
    """Describe image files that may not be read, or are links to nothing."""
    links = sum(Path(path).is_symlink() for path in paths)
    advice = [f"fix the link{'s' if links > 1 else ''}"] if links else []
    if links < len(paths):
        advice.append(f"give {'it' if len(paths) - links == 1 else 'them'} permission")
    return f"{listed(paths)} cannot be read; {' and '.join(advice)}, or take {'it' if len(paths) == 1 else 'them'} away"


def _say_unknown(folder: Path, unknown: list[str], classes: list[str]) -> str:
    """Describe folders in val/ or test/ that train/ does not have."""
    paths = listed([folder / name for name in unknown])
    if len(unknown) == 1:
        line = f"{paths} is no class: the training images have no folder of that name"
    else:
        line = f"{paths} are no classes: the training images have no folders of those names"
    alike = [name for name in unknown if _normal_form(name) in map(_normal_form, classes)]
    deeper = [name for name in unknown if set(subfolders(folder / name)) & set(classes)]
    if alike:
        line += f"; {listed(alike)} only looks like one, and is written in another Unicode form: give both the same"
    if deeper:
        line += f"; {listed([folder / name for name in deeper])} holds folders of classes: move them into {folder}"
    return line


def _say_empty(split: SplitFolder, names: list[str]) -> str:
    """Describe class folders without an image."""
    paths, has = listed([split.folder / name for name in names]), "has" if len(names) == 1 else "have"
    it = "it" if len(names) == 1 else "them"
    skipped = [path for name in names for path in split.found[name].skipped]
    suffixes = sorted({Path(path).suffix.lower() or Path(path).name for path in skipped})
    others = f", but in {listed(suffixes)}" if suffixes else ""
    endings = SUFFIX if split.arrays else ".jpg, .png, .webp or the like"
    return f"{paths} {has} no image: no file in {it} ends in {endings}{others}"


def _count_loose_images(folder: Path) -> str:
    """Say how many images in train/, val/ or test/ are in no folder of a class: "1 image", or nothing for none."""
    number = sum(is_named_as_image(entry.name) for entry in entries(folder) if not is_folder(entry))
    return f"{number:,} image{'' if number == 1 else 's'}" if number else ""


def _notes(folder: Path, splits: Sequence[SplitFolder]) -> Iterator[str]:
    """Yield a line if files were skipped, and one for each split without images of some classes."""
    skipped = [path for split in splits for path in split.skipped]
    if skipped:
        example = os.path.relpath(skipped[0], folder)
        why = "hidden, no image by their name or in no class's folder"
        yield f"Skipped in {folder}: {len(skipped):,} that are {why}, as {example}"
    for split in splits:
        if empty := split.empty_classes:
            some = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            yield f"{split.folder} has no image of {len(empty)} of {len(split.found)} classes: {some}"


def _note_channels(train: ImageFiles) -> Iterator[str]:
    """Yield a line if the images are not read as RGB."""
    if train.are_arrays:
        yield f"Images are {SUFFIX} files of {train.channels} channel{'' if train.channels == 1 else 's'}"
    elif train.channels == 1:
        yield "Images are read as grey; colours become 0.299 R + 0.587 G + 0.114 B"


def _note_unused(folder: Path, folders: dict[str, Path]) -> Iterator[str]:
    """Yield a line if the data folder has other entries than the folders of the splits."""
    used = {path.name for path in folders.values()}
    unused = [
        f"{entry.name}/ ({_count_images(Path(entry.path))})" if is_folder(entry) else entry.name
        for entry in entries(folder)
        if entry.name not in used and not is_ignored(entry.name)
    ]
    if unused:
        yield f"Not used in {folder}: {listed(unused)}"


def _count_images(folder: Path) -> str:
    """Say how many images are in a folder and below it: "no image", "1 image", "12 images" or "many images"."""
    number, is_complete = count_images(folder, most_files=FILES_LOOKED_AT)
    if not is_complete:
        return "many images" if number else "many files"
    return f"{number or 'no'} image{'' if number < 2 else 's'}"


def _note_similar_names(classes: Sequence[str]) -> Iterator[str]:
    """Yield a line for classes whose names look the same."""
    for form in sorted({_normal_form(name) for name in classes}):
        similar = [name for name in classes if _normal_form(name) == form]
        if len(similar) > 1:
            yield f"{len(similar)} classes look like {form}, and are written in different Unicode forms"


def _normal_form(name: str) -> str:
    """Return a name in the Unicode form in which names that look the same are the same."""
    return unicodedata.normalize("NFC", name)
