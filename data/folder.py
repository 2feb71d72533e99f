"""A user's own images: a folder for each class, below a folder for each use.

    DIR/train/<class>/...    training images
    DIR/test/<class>/...     test images, looked at once, at the end
    DIR/val/<class>/...      validation images, or if there is no test/, the test images

Where only one of test/ and val/ is there, validation images are held out of the training images. Files lie in the
folder of their class or anywhere below it. The folders for each use may have other names, see `data.layout`.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import DataError, listed
from data.find import Found, entries, find_images, is_folder, is_named_as_image
from data.image_files import ImageFiles
from data.layout import LAYOUT, beside, find_uses, subfolders
from data.source import Source


@dataclass(frozen=True)
class Use:
    """What lies below train/, val/ or test/.

    Attributes:
        folder: Which of them.
        found: What was found for each class.
        outside: Paths of what lies in no class's folder.
    """

    folder: Path
    found: dict[str, Found]
    outside: list[str]

    @property
    def lacking(self) -> list[str]:
        """The classes without an image."""
        return [name for name, found in self.found.items() if not found.images]

    @property
    def skipped(self) -> list[str]:
        """Paths of what was skipped."""
        return [*self.outside, *(path for found in self.found.values() for path in found.skipped)]

    def labelled(self, image_size: int) -> ImageFiles:
        """All images, class by class, with the position of their class as the label."""
        paths = tuple(path for found in self.found.values() for path in found.images)
        counts = torch.tensor([len(found.images) for found in self.found.values()])
        return ImageFiles(paths, torch.arange(len(counts)).repeat_interleave(counts), image_size)


def read_folder(folder: Path, download: bool, *, image_size: int) -> Source:
    """Find all images below a folder; none is decoded yet. The top of this file says where they lie.

    Raises:
        MissingData: If a folder is missing.
        DataError: If there are fewer than 2 classes, some have no training image, val/ or test/ have others or no image
            at all, or something cannot be read. The message names all of these.
    """
    where = find_uses(folder)
    classes = subfolders(where["train"])
    if len(classes) < 2:
        raise DataError(_say_too_few(where["train"], classes))
    uses = [_look_into(path, classes) for path in where.values()]
    problems = [problem for use in uses for problem in _problems(use, is_train=use is uses[0])]
    if problems:
        raise DataError("; ".join(problems))
    train, *held_out, test = (use.labelled(image_size) for use in uses)
    notes = (*_notes(folder, uses), *_beside(folder, where), *_twins(classes))
    return Source(train, test, tuple(classes), valid=held_out[0] if held_out else None, notes=notes)


def _look_into(folder: Path, classes: list[str]) -> Use:
    """Find the images of all classes below train/, val/ or test/."""
    there = subfolders(folder)
    found = {name: find_images(folder / name) if name in there else Found() for name in classes}
    return Use(folder, found, [entry.path for entry in entries(folder) if entry.name not in there])


def _say_too_few(folder: Path, classes: list[str]) -> str:
    """A line about a train/ with no class or a single one."""
    count = f"{len(classes)} class folder{'' if len(classes) == 1 else 's'}"
    line = f"{folder} has {count}, but must have 2 or more; {LAYOUT}"
    inside = subfolders(folder / classes[0]) if classes else []
    if len(inside) > 1:
        return f"{line}; {listed(inside)} in {folder / classes[0]} look like classes: move them into {folder}"
    loose = _loose_images(folder)
    return f"{line}; {loose} in it lie in no class's folder, and so have no labels" if loose else line


def _problems(use: Use, *, is_train: bool) -> Iterator[str]:
    """All that keeps train/, val/ or test/ from being used, a line each."""
    there = subfolders(use.folder)
    unknown = sorted(set(there) - set(use.found))
    if unknown:
        yield _say_unknown(use.folder, unknown, list(use.found))
    if not there:
        loose = _loose_images(use.folder)
        holds = f"but {loose}: they have no labels; rename it, or use predict" if loose else f"and no image; {LAYOUT}"
        yield f"{use.folder} has no class folders, {holds}"
    elif use.lacking and (is_train or len(use.lacking) == len(use.found)) and not unknown:
        yield _say_empty(use, use.lacking if is_train else [name for name in use.lacking if name in there])
    unreadable = [path for found in use.found.values() for path in found.unreadable]
    if unreadable:
        yield _say_unreadable(unreadable)


def _say_unreadable(paths: list[str]) -> str:
    """A line about image files that may not be read, or are links that lead nowhere."""
    links = sum(Path(path).is_symlink() for path in paths)
    advice = [f"mend the link{'s' if links > 1 else ''}"] if links else []
    if links < len(paths):
        advice.append(f"give {'it' if len(paths) - links == 1 else 'them'} permission")
    return f"{listed(paths)} cannot be read; {' and '.join(advice)}, or take {'it' if len(paths) == 1 else 'them'} away"


def _say_unknown(folder: Path, unknown: list[str], classes: list[str]) -> str:
    """A line about folders in val/ or test/ that train/ lacks."""
    paths = listed([folder / name for name in unknown])
    if len(unknown) == 1:
        line = f"{paths} is no class: the training images have no folder of that name"
    else:
        line = f"{paths} are no classes: the training images have no folders of those names"
    alike = [name for name in unknown if _looks(name) in map(_looks, classes)]
    deeper = [name for name in unknown if set(subfolders(folder / name)) & set(classes)]
    if alike:
        line += f"; {listed(alike)} only looks like one, and is written in another Unicode form: give both the same"
    if deeper:
        line += f"; {listed([folder / name for name in deeper])} holds folders of classes: move them into {folder}"
    return line


def _say_empty(use: Use, names: list[str]) -> str:
    """A line about class folders without an image."""
    paths, has = listed([use.folder / name for name in names]), "has" if len(names) == 1 else "have"
    it = "it" if len(names) == 1 else "them"
    skipped = [path for name in names for path in use.found[name].skipped]
    endings = sorted({Path(path).suffix.lower() or Path(path).name for path in skipped})
    seen = f", but in {listed(endings)}" if endings else ""
    return f"{paths} {has} no image: no file in {it} ends in .jpg, .png, .webp or the like{seen}"


def _loose_images(folder: Path) -> str:
    """The number of images in train/, val/ or test/ that lie in no folder of a class; empty if there are none."""
    number = sum(is_named_as_image(entry.name) for entry in entries(folder) if not is_folder(entry))
    return f"{number:,} image{'' if number == 1 else 's'}" if number else ""


def _notes(folder: Path, uses: Sequence[Use]) -> Iterator[str]:
    """A line if files were skipped, and one for each use without images of some classes."""
    skipped = [path for use in uses for path in use.skipped]
    if skipped:
        example = os.path.relpath(skipped[0], folder)
        why = "hidden, no image by their name or in no class's folder"
        yield f"Skipped in {folder}: {len(skipped):,} that are {why}, as {example}"
    for use in uses:
        if use.lacking:
            some = ", ".join(use.lacking[:5]) + (", ..." if len(use.lacking) > 5 else "")
            yield f"{use.folder} has no image of {len(use.lacking)} of {len(use.found)} classes: {some}"


def _beside(folder: Path, where: dict[str, Path]) -> Iterator[str]:
    """A line if something lies beside the folders that are used."""
    others = beside(folder, where)
    if others:
        yield f"Not used in {folder}: {listed(others)}"


def _looks(name: str) -> str:
    """A name in the Unicode form in which names that look the same are the same."""
    return unicodedata.normalize("NFC", name)


def _twins(classes: Sequence[str]) -> Iterator[str]:
    """A line for classes whose names look the same."""
    for look in sorted({_looks(name) for name in classes}):
        twins = [name for name in classes if _looks(name) == look]
        if len(twins) > 1:
            yield f"{len(twins)} classes look like {look}, and are written in different Unicode forms"
