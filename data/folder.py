"""A user's own images: a folder for each class, below a folder for each use.

    DIR/train/<class>/...    training images
    DIR/test/<class>/...     test images, looked at once, at the end
    DIR/val/<class>/...      validation images, or if there is no test/, the test images

Where only one of test/ and val/ is there, validation images are held out of the training images. Files lie in the
folder of their class or anywhere below it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import DataError, MissingData
from data.find import Found, entries, find_images, is_folder
from data.image_files import ImageFiles
from data.source import Source

LAYOUT = "--data needs train/ with a folder for each class, and test/ or val/ with the same folders"


@dataclass(frozen=True)
class Use:
    """What lies below train/, val/ or test/.

    Attributes:
        folder: Which of them.
        images: Paths of the images of each class.
        skipped: Paths of what was skipped.
    """

    folder: Path
    images: dict[str, list[str]]
    skipped: list[str]

    @property
    def lacking(self) -> list[str]:
        """The classes without an image."""
        return [name for name, paths in self.images.items() if not paths]

    def labelled(self, image_size: int) -> ImageFiles:
        """All images, class by class, with the position of their class as the label."""
        paths = tuple(path for paths in self.images.values() for path in paths)
        counts = torch.tensor([len(paths) for paths in self.images.values()])
        return ImageFiles(paths, torch.arange(len(counts)).repeat_interleave(counts), image_size)


def read_folder(folder: Path, download: bool, *, image_size: int) -> Source:
    """Find all images below a folder; none is decoded yet. The top of this file says where they lie.

    Raises:
        MissingData: If a folder is missing.
        DataError: If there are fewer than 2 classes, one has no training image, val/ or test/ have others or no image
            at all, or something cannot be read.
    """
    names = _names_of_uses(folder)
    classes = _class_folders(folder / "train")
    if len(classes) < 2:
        count = f"{len(classes)} class folder{'' if len(classes) == 1 else 's'}"
        raise DataError(f"{folder / 'train'} has {count}, but must have 2 or more; {LAYOUT}")
    uses = [_look_into(folder / name, classes) for name in names]
    train, *held_out, test = (use.labelled(image_size) for use in uses)
    return Source(train, test, tuple(classes), valid=held_out[0] if held_out else None, notes=_notes(folder, uses))


def _names_of_uses(folder: Path) -> list[str]:
    """Of train, val and test those that are there: the first, and one or both of the others."""
    there = {entry.name for entry in entries(folder) if is_folder(entry)}
    names = [name for name in ("train", "val", "test") if name in there]
    if "train" not in names or len(names) == 1:
        lacking = "test" if "train" in names else "train"
        raise MissingData(f"there is no folder {folder / lacking}; {LAYOUT}")
    return names


def _class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder) if is_folder(entry) and not entry.name.startswith(".")]


def _look_into(folder: Path, classes: list[str]) -> Use:
    """Find the images of all classes below train/, val/ or test/."""
    there = _class_folders(folder)
    unknown = sorted(set(there) - set(classes))
    if unknown:
        raise DataError(f"{folder / unknown[0]} is no class: the training images have no folder of that name")
    found = {name: find_images(folder / name) if name in there else Found() for name in classes}
    skipped = [entry.path for entry in entries(folder) if entry.name not in there]
    skipped += [path for one in found.values() for path in one.skipped]
    use = Use(folder, {name: one.images for name, one in found.items()}, skipped)
    if use.lacking and (folder.name == "train" or len(use.lacking) == len(classes)):
        raise DataError(f"{folder / use.lacking[0]} has no image: no file in it ends in .jpg, .png, .webp or the like")
    return use


def _notes(folder: Path, uses: list[Use]) -> tuple[str, ...]:
    """A line if files were skipped, and one for each use without images of some classes."""
    notes = []
    skipped = [path for use in uses for path in use.skipped]
    if skipped:
        example = os.path.relpath(skipped[0], folder)
        why = "hidden, no image by their name or in no class's folder"
        notes.append(f"Skipped in {folder}: {len(skipped):,} that are {why}, as {example}")
    for use in uses:
        if use.lacking:
            some = ", ".join(use.lacking[:5]) + (", ..." if len(use.lacking) > 5 else "")
            notes.append(f"{use.folder} has no image of {len(use.lacking)} of {len(use.images)} classes: {some}")
    return tuple(notes)
