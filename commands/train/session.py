"""A training run before torch is imported: its settings are checked, and its folder is acquired."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from commands.memory import advice_for_training, memory_explained
from commands.settings import TrainSettings
from commands.train.checks import check_training
from train.processes import current_group, is_launched, launcher_warning
from train.run.acquire import acquire
from train.run.run_folder import RunFolder
from train.terminal import warn


def checked(settings: TrainSettings) -> TrainSettings:
    """The same settings with the size of the images, once it is known that they go together.

    Raises:
        UserError: If they do not.
    """
    settings = settings.checked()
    check_training(settings, num_processes=current_group().world_size, is_launched=is_launched())
    if line := launcher_warning(os.environ):
        warn(line)
    return settings


@contextmanager
def training_folder(settings: TrainSettings) -> Iterator[RunFolder]:
    """Hold the folder of a run while it is trained, and explain memory that runs out and processes that are lost.

    Raises:
        UserError: If the folder cannot be written, holds a run that may not be touched, or one with other settings.
        RunError: If memory runs out.
        LostProcess: If another process of the run has ended.
    """
    processes = current_group()
    with (
        acquire(settings.save, settings.identity(), processes, resume=settings.resume) as folder,
        processes.detect_lost_process(),
        memory_explained(lambda: advice_for_training(settings)),
    ):
        yield folder
