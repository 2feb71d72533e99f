"""The steps of a training run, in their order: settings, device, data, network, replicas, fit."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from commands.recipes import describe_altered
from commands.settings import TrainSettings
from commands.train.config import config_of
from commands.train.curves import Curves
from commands.train.dataset import read_dataset
from commands.train.initial_weights import load_initial_weights, read_initial_weights
from commands.train.summary import Summary
from commands.train.tensorboard import Events
from data.datasets import DATASETS, DatasetSpec, validation_size
from data.splits import Dataset
from models import DenseNet
from train import cpu_contention, replicas, runtime
from train.cuda_graph import CudaGraphs
from train.ema import ExponentialMovingAverage
from train.engine import Loaders, Run, Schedule
from train.optim import make_optimizer
from train.processes import current_group
from train.run.checkpoint import Checkpoint
from train.run.run_folder import RunFolder
from train.step import Stepper
from train.terminal import say


@dataclass(frozen=True)
class Inputs:
    """Everything that a run reads before it builds its network.

    Attributes:
        settings: Settings of the run, with everything that the program has chosen.
        device: Device of this process.
        source: Data set of the run.
        spec: How its images are prepared.
        loaders: Batches of this process.
        initial_weights: Weights of --init_weights, in the main process of a new run that names a file, until the
            network has them.
    """

    settings: TrainSettings
    device: torch.device
    source: Dataset
    spec: DatasetSpec
    loaders: Loaders
    initial_weights: dict[str, Any] | None


def choose(settings: TrainSettings, folder: RunFolder) -> TrainSettings:
    """Choose the seed and the augmentation if the settings leave them open; a checkpoint in the folder has to agree."""
    seed = current_group().on_main(runtime.draw_seed) if settings.seed is None else settings.seed
    augment = DATASETS[settings.dataset].augment if settings.augment is None else settings.augment
    settings = replace(settings, seed=seed, augment=augment)
    folder.identity = settings.identity()
    return settings


def add_writers(settings: TrainSettings, folder: RunFolder) -> None:
    """Let the folder write curves.png, events for TensorBoard if they are asked for, and results.json at the end."""
    title, smoothing, mixes = title_of(settings), settings.label_smoothing, settings.mixes
    folder.add_writer(lambda directory: Curves(directory, title=title, label_smoothing=smoothing, mixes=mixes))
    if settings.tensorboard:
        folder.add_writer(Events)
    folder.add_writer(lambda directory: Summary(directory, settings))


def title_of(settings: TrainSettings) -> str:
    """The network, the data and the seed of a run in words."""
    return f"{settings.title}, seed {settings.seed}"


def read_inputs(settings: TrainSettings, *, is_new: bool) -> Inputs:
    """Set up this process and its device, and read the data and the initial weights of the run.

    Args:
        settings: Settings of the run, its seed among them.
        is_new: Whether the run has no checkpoint.

    Raises:
        DataError: If the data cannot be read.
        UserError: If the devices, the data or the weights do not allow what the settings ask for.
    """
    processes = current_group()
    runtime.use_threads(settings.threads)
    device = runtime.pick_device(processes)
    if settings.deterministic:
        runtime.be_deterministic()
    else:
        runtime.be_fast()
    runtime.use_precision(settings.precision)
    replicas.require_devices(
        device,
        precision=settings.precision,
        compile=settings.compile,
        sync_bn=settings.sync_bn,
        cuda_graph=settings.cuda_graph,
        processes=processes,
    )
    initial_weights = processes.on_main_only(read_initial_weights, settings) if is_new else None
    source, spec, loaders = read_dataset(settings, device, processes, is_new=is_new)
    valid_size = validation_size(source, spec, settings.valid_size)
    return Inputs(replace(settings, valid_size=valid_size), device, source, spec, loaders, initial_weights)


def build_network(inputs: Inputs, *, is_new: bool) -> DenseNet:
    """Build the network: with weights that are a function of the seed, or those of --init_weights in a new run."""
    settings = inputs.settings
    assert settings.seed is not None, "chosen before"
    runtime.seed_weights(settings.seed)
    network = settings.network_settings.build(len(inputs.source.classes))
    if settings.init_weights and is_new:
        say(current_group().on_main(load_initial_weights, settings.init_weights, inputs.initial_weights, network))
        if inputs.initial_weights is not None:
            inputs.initial_weights.clear()  # or they would take memory as long as the run
    return network


def place(network: DenseNet, inputs: Inputs) -> replicas.Replicas:
    """Move the network to its device, and make the replicas that train and evaluate it."""
    settings = inputs.settings
    return replicas.replicate(
        runtime.placed(network, inputs.device),
        inputs.device,
        precision=settings.precision,
        compile=settings.compile,
        sync_bn=settings.sync_bn,
        processes=current_group(),
    )


def fit(placed: replicas.Replicas, inputs: Inputs, folder: RunFolder, checkpoint: Checkpoint) -> float:
    """Train from the checkpoint to the last epoch, and return the test error of the chosen weights.

    Raises:
        UserError: If the checkpoint is of another network.
        RunError: If a loss is NaN or infinite, or the folder cannot be written.
        Stopped: If a signal has come.
    """
    settings, processes = inputs.settings, current_group()
    assert settings.seed is not None, "chosen before"
    stepper = Stepper(
        placed.training,
        make_optimizer(
            placed.network.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            wd=settings.wd,
            decay_norms=settings.decay_norms,
        ),
        runtime.make_scaler(settings.precision, inputs.device),
        processes=processes,
        accum_steps=settings.accum_steps,
        label_smoothing=settings.label_smoothing,
        clip_grad=settings.clip_grad,
        average=ExponentialMovingAverage(placed.network, settings.ema) if settings.ema else None,
        graphs=CudaGraphs(inputs.device) if settings.cuda_graph else None,
    )
    device = runtime.describe_device(inputs.device, processes)
    config = config_of(settings, placed.network, inputs.source, inputs.spec, device=device)
    folder.write_config(config)
    say(f"{title_of(settings)}: {config['parameters']:,} parameters, {device}")
    sizes = inputs.loaders.describe(limit=settings.limit_batches)
    say(*filter(None, [describe_altered(settings.plain()), *inputs.source.notes, sizes]))
    if not checkpoint.is_empty:
        say(f"Resuming {checkpoint.position}.")
    schedule = Schedule(
        settings.n_epochs,
        settings.lr,
        settings.lr_schedule,
        settings.warmup_epochs,
        milestones=settings.milestones,
        factor=settings.lr_factor,
    )
    minutes = settings.checkpoint_minutes
    run = Run(
        placed, stepper, inputs.loaders, folder, schedule=schedule, seed=settings.seed, checkpoint_minutes=minutes
    )
    with cpu_contention.warn_if_busy(inputs.device):
        return run.fit(checkpoint)
