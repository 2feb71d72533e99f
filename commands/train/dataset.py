"""The data set of a training run, and its batches."""

import torch

from commands.settings import TrainSettings
from commands.train.checks import check_last_batch
from data.datasets import DATASETS, DatasetSpec, load
from data.epoch_plan import Augmentation
from data.loader import Loader, Shard, make_loaders
from data.normalisation import with_normalisation
from data.splits import Dataset
from data.verify import verify_held_out
from train.byte_bar import ByteBar
from train.engine import Loaders
from train.errors import UserError
from train.processes import ProcessGroup
from train.run.config import require_recorded_data
from train.terminal import Bar, say


def read_dataset(
    settings: TrainSettings, device: torch.device, processes: ProcessGroup, *, is_new: bool
) -> tuple[Dataset, DatasetSpec, Loaders]:
    """Read the images of a run, decide how to prepare them, and divide the batches among its processes.

    Args:
        settings: Settings of the run, its seed among them.
        device: Device that trains.
        processes: Processes of the run.
        is_new: Whether the run has no checkpoint. Otherwise the data must be those that it began with.

    Raises:
        DataError: If they cannot be read.
        UserError: If they are not the same in all processes, or not those that the run began with.
    """

    def read() -> Dataset:
        return load(
            settings.dataset,
            folder=settings.data,
            download=settings.download,
            image_size=settings.pixels,
            channels=settings.in_channels,
            mirrors=settings.data_url,
            notify=say,
            bar=ByteBar,
        )

    source = processes.main_first(read)
    if processes.world_size > 1 and not processes.all_equal(source.digest()):
        raise UserError(
            "the processes of the run do not find the same classes and files in --data; make its copies on all "
            "machines the same, or let the machines share one"
        )
    if not is_new:
        processes.on_main(require_recorded_data, settings.save, classes=source.classes, sizes=source.sizes())
    # The main process measures the training images for all.
    spec = processes.on_main(
        with_normalisation, DATASETS[settings.dataset], source.train, channels=settings.in_channels
    )
    train, valid, test = processes.main_first(lambda: _make_loaders(settings, source, spec, device, processes))
    check_last_batch(settings, num_images=train.num_images, num_processes=processes.world_size)
    if is_new:
        verify_held_out([loader for loader in (valid, test) if loader], bar=Bar)
    return source, spec, Loaders(train, valid, test)


def _make_loaders(
    settings: TrainSettings, source: Dataset, spec: DatasetSpec, device: torch.device, processes: ProcessGroup
) -> tuple[Loader, Loader | None, Loader]:
    assert settings.augment is not None, "chosen before the data are read"
    assert settings.seed is not None, "chosen before the data are read"
    return make_loaders(
        source,
        spec,
        device,
        batch_size=settings.batch_size,
        valid_size=settings.valid_size,
        augment=settings.augment,
        seed=settings.seed,
        augmentation=Augmentation(
            crop_border=settings.crop_border,
            trivial=settings.trivial_augment,
            erasing=settings.erasing,
            cutout=settings.cutout,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
        ),
        shard=Shard(processes.rank, processes.world_size),
        limit=settings.limit_batches,
    )
