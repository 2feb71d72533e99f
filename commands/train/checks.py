"""Checks of training settings that are valid one by one but not together."""

import os

from commands.requirements import require_compiler, require_packages
from commands.settings import BUFFERS, TrainSettings
from commands.train.seeds import require_one_kind_of_run
from data.crops import SMALL
from data.datasets import DATASETS
from train.errors import UserError
from train.processes import current_group, is_launched, launcher_warning
from train.program_name import TORCHRUN_WORDS
from train.terminal import warn


def checked(settings: TrainSettings) -> TrainSettings:
    """Check that settings go together, and return them with the image size filled in.

    A process that a launcher other than torchrun has started beside others is warned that it trains alone.

    Raises:
        UserError: If they do not go together.
    """
    settings = settings.checked()
    current_group().on_main(require_one_kind_of_run, settings)
    check_training(settings, num_processes=current_group().world_size, is_launched=is_launched())
    if line := launcher_warning(os.environ):
        warn(line)
    return settings


def check_training(settings: TrainSettings, *, num_processes: int, is_launched: bool) -> None:
    """Make sure that the settings of a training run go together.

    Args:
        settings: Settings of the run.
        num_processes: Number of processes of the run.
        is_launched: Whether torchrun has started them.

    Raises:
        UserError: If they do not; the message names flags, values and what is allowed.
    """
    if settings.warmup_epochs >= settings.n_epochs:
        raise UserError(
            f"--warmup_epochs is {settings.warmup_epochs}, but must be below --n_epochs, which is {settings.n_epochs}"
        )
    defaults = settings.defaults()
    for flag in ("lr_milestones", "lr_factor"):
        if settings.lr_schedule != "step" and getattr(settings, flag) != defaults[flag]:
            raise UserError(f"--{flag} works with --lr_schedule step, but that is {settings.lr_schedule}")
    if settings.accum_steps * num_processes > settings.batch_size:
        where = f" in each of {num_processes} processes" if num_processes > 1 else ""
        raise UserError(
            f"--batch_size is {settings.batch_size}, but must be {settings.accum_steps * num_processes} or more: "
            f"an image for each micro-batch of --accum_steps {settings.accum_steps}{where}"
        )
    if settings.cutout and settings.cutout > settings.pixels:
        raise UserError(
            f"--cutout is {settings.cutout}, but must be {settings.pixels} or less, the height and width of the images"
        )
    if settings.crop_border != defaults["crop_border"]:
        augment = DATASETS[settings.dataset].augment if settings.augment is None else settings.augment
        if not augment or settings.pixels > SMALL:
            raise UserError(
                f"--crop_border {settings.crop_border} is for images that are padded and cropped: of up to {SMALL} "
                "pixels, with --augment True"
            )
    for flag, is_asked in (("compile", settings.compile), ("sync_bn", settings.sync_bn)):
        if is_asked and settings.efficient in BUFFERS:
            raise UserError(
                f"--{flag} True does not work with --efficient {settings.efficient}, only with naive and checkpoint"
            )
    if settings.compile:
        require_compiler()
    if settings.cuda_graph and settings.compile:
        raise UserError("--cuda_graph True does not work with --compile True")
    if settings.cuda_graph and is_launched:
        raise UserError("--cuda_graph True works in a single process on one GPU, not under torchrun")
    if settings.sync_bn and not is_launched:
        raise UserError(
            "--sync_bn True works between processes on GPUs: start it by torchrun --nproc_per_node=N "
            + " ".join(TORCHRUN_WORDS)
        )
    if settings.tensorboard:
        require_packages("tensorboard", flag="tensorboard", value=True)


def check_last_batch(settings: TrainSettings, *, num_images: int, num_processes: int) -> None:
    """Make sure that with --sync_bn every part of the last batch has an image.

    Otherwise the norm layers of other processes would wait for those of a process that runs none.

    Raises:
        UserError: If a part would be empty.
    """
    parts, rest = settings.accum_steps * num_processes, num_images % settings.batch_size
    if settings.sync_bn and 0 < rest < parts:
        raise UserError(
            f"--sync_bn True needs an image in each part of a batch, but the last batch has {rest} for {parts} parts; "
            "choose another --batch_size"
        )
