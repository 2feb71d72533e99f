"""Who may write into a folder: a new run, or the run that is in it with the same flags."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from commands.saved_run import counts, require_classes, texts
from train.errors import UserError
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.run.config import read_config
from train.run.identity import RunIdentity
from train.run.lock import locked
from train.run.names import CHECKPOINT, CONFIG, FILES, PREVIOUS
from train.run.run_folder import RunFolder


def without_links(folder: Path) -> Path:
    """The folder that a path leads to now, whichever way links on it are turned later; the path itself without links.

    A link that leads nowhere is kept, so that nothing is made where a disk is not mounted.

    Raises:
        UserError: If the path is relative to a folder that does not exist any more.
    """
    try:
        if any(path.is_symlink() and not path.exists() for path in (folder, *folder.parents)):
            return folder
        real = os.path.realpath(folder)
        return folder if real == os.path.normpath(folder.absolute()) else Path(real)
    except OSError as error:
        raise UserError(f"--save {folder} cannot be written: {error.strerror or error}") from error


def recorded_flags(folder: Path) -> dict[str, Any]:
    """The flags of the run in a folder, empty if there is none.

    Raises:
        UserError: If config.json cannot be read.
    """
    config = read_config(folder)
    return {} if config is None else config["flags"]


def require_recorded_data(folder: Path, *, classes: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Make sure that a run goes on with the data that its config.json speaks of, as far as that can be seen.

    The test set may change: nothing that was done so far depends on it.

    Args:
        folder: Of the run.
        classes: Their names, in the order of the logits.
        sizes: How many images there are, by "train" and "valid". Those that are held out are training images here.

    Raises:
        UserError: If the data set has other classes now, or another number of images, or config.json cannot be used.
    """
    config = read_config(folder) or {}
    try:
        recorded = texts(config, "classes") if "classes" in config else tuple(classes)
        recorded_sizes = _sizes_before_split(config)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from error
    require_classes(classes, recorded, folder=folder)
    for use in ("train", "valid"):
        before, now = recorded_sizes.get(use, sizes[use]), sizes[use]
        if now != before:
            raise UserError(
                f"the run in {folder} began with {before:,} images for {use} and the data set has {now:,} now; make it "
                "as it was, or begin another run"
            )


def _sizes_before_split(config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of images in config.json, with those held out counted as training images, as older versions did."""
    sizes = counts(config, "images") if "images" in config else {}
    if "train" in sizes and config["flags"].get("valid_size"):
        return {**sizes, "train": sizes["train"] + sizes.get("valid", 0), "valid": 0}
    return sizes


@contextmanager
def acquire(
    folder: Path, identity: RunIdentity, processes: ProcessGroup = SINGLE_PROCESS, *, resume: bool
) -> Iterator[RunFolder]:
    """Make sure that a run may write into a folder, and make the folder if it does not exist."""
    with ExitStack() as stack:
        held = _held(folder, identity, processes, resume)
        first = processes.on_main_only(stack.enter_context, held)
        yield first or RunFolder(folder, processes=processes, identity=identity)


@contextmanager
def _held(folder: Path, identity: RunIdentity, processes: ProcessGroup, resume: bool) -> Iterator[RunFolder]:
    with ExitStack() as stack:
        try:
            if folder.exists() and not folder.is_dir():
                raise UserError(f"--save is {str(folder)!r}, but must be a folder, not a file")
            stack.enter_context(_made(folder))
            held = stack.enter_context(locked(folder))
        except OSError as error:
            raise UserError(f"--save {folder} cannot be written: {error.strerror or error}") from error
        is_new = not _found_checkpoint(folder, resume=resume)
        recorded = recorded_flags(folder)
        if recorded:
            _check_flags({**identity.defaults, **recorded}, identity, folder)
        run = RunFolder(folder, held, processes, identity=identity, is_new=is_new)
        run.clear()
        held.require_same()
        yield run
        held.require_same()  # or nobody would learn that the files of the run are elsewhere


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those that it lies in; remove those of them that are empty at the end."""
    made: list[tuple[Path, os.stat_result]] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir(exist_ok=True)
            made.append((path, path.stat()))
        yield
    finally:
        for path, status in reversed(made):
            with suppress(OSError):  # not empty
                if os.path.samestat(path.stat(), status):
                    path.rmdir()


def _found_checkpoint(folder: Path, *, resume: bool) -> bool:
    """Whether there is a checkpoint to go on from, in a folder that is unused or holds all that is needed for it."""
    found = [name for name in FILES if (folder / name).exists()]
    if found and not resume:
        raise UserError(
            f"--save {folder} already holds a run ({', '.join(found)}): continue it with --resume True, "
            "or choose another folder"
        )
    has_checkpoint = CHECKPOINT in found or PREVIOUS in found
    if has_checkpoint and CONFIG in found and recorded_flags(folder).get("seed") is None:
        raise UserError(f"{folder / CONFIG} names no seed, without which the run cannot be continued")
    lacking = CONFIG if CONFIG not in found else CHECKPOINT
    if found and found != [CONFIG] and not (CONFIG in found and has_checkpoint):
        raise UserError(
            f"--save {folder} holds {', '.join(found)} but no {lacking}, so it cannot be continued; "
            "choose another folder"
        )
    return has_checkpoint


def _check_flags(recorded: Mapping[str, Any], identity: RunIdentity, folder: Path) -> None:
    flag = identity.first_difference(recorded)
    if flag is None:
        return
    value = identity.settings[flag]
    if flag in identity.growing:
        raise UserError(f"--{flag} is {value}, but the run in {folder} has {recorded[flag]}; it may only grow")
    raise UserError(
        f"--{flag} is {value!r}, but the run in {folder} has {recorded[flag]!r}; "
        "continue it as it is, or choose another folder"
    )
