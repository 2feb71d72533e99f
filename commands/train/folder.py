"""The folder of a training run, held while the run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from commands.memory import advice_for_training, memory_explained
from commands.settings import TrainSettings
from train.processes import current_group
from train.run.acquire import acquire
from train.run.run_folder import RunFolder


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
