"""Where a command gets a trained network from: the folder of a run, or a file of weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from commands.line.flags import Settings, flag, settings
from commands.run_record import RunRecord, read_with_record
from commands.saved_run import SavedRun, read_saved_run
from commands.settings import DatasetName, Depth, GrowthRate, ImageSize, NetworkName
from commands.weights_file import WeightsFile, read_weights_file
from train.errors import UserError

if TYPE_CHECKING:
    from models import DenseNet

OF_WEIGHTS = ("dataset", "network", "depth", "growth_rate", "image_size")  # flags that only --weights needs


@settings
class TrainedSettings(Settings):
    """Flags that say which trained network a command uses."""

    save: Path | None = flag("Folder of the run.", default=None)
    weights: Path | None = flag(
        "In place of --save: a file of weights, of this program or of another one, as --init_weights of train takes "
        "it. It needs --dataset.",
        default=None,
    )
    dataset: DatasetName | None = flag(
        "With --weights: the data set of the weights. Images are normalised by its mean and standard deviation, "
        "or by those that a safetensors file of this program records.",
        default=None,
    )
    data: Path | None = flag("With --weights and --dataset folder: its folder, for the names of classes.", default=None)
    network: NetworkName | None = flag(
        "With --weights: the network. None: the one that has weights of such shapes; the same holds for depth and "
        "growth_rate.",
        default=None,
    )
    depth: Depth | None = flag("With --weights: weighted layers L of the network.", default=None)
    growth_rate: GrowthRate | None = flag("With --weights: channels k that each layer adds.", default=None)
    image_size: ImageSize | None = flag(
        'With --weights: height and width to which images of "folder" are resized, as in train.', default=None
    )


def read_trained(source: TrainedSettings, *, reads_data: bool = False) -> SavedRun | WeightsFile:
    """Read what is known about a trained network: config.json of a run, or a file of weights.

    Args:
        source: Flags of the command.
        reads_data: Whether the command reads the data set of the network, in the folder `data`.

    Raises:
        UserError: If the flags do not name one network, or the files cannot be used.
    """
    if source.save is None and source.weights is None:
        raise UserError("--save or --weights is needed; see --help")
    if source.save is not None:
        if source.weights is not None:
            raise UserError("--save and --weights name two networks; name one of them")
        for name in OF_WEIGHTS if reads_data else (*OF_WEIGHTS, "data"):
            if getattr(source, name) is not None:
                raise UserError(f"--{name} is for --weights; the run in --save has its own")
        return read_saved_run(source.save)
    assert source.weights is not None
    if source.dataset is None:
        raise UserError("--weights needs --dataset, whose mean and standard deviation normalise images; see --help")
    if source.data is not None and not reads_data and source.dataset != "folder":
        raise UserError(
            f"--data is for the names of the classes of --dataset folder; those of {source.dataset} are known"
        )
    return read_weights_file(
        source.weights,
        dataset=source.dataset,
        data=source.data,
        image_size=source.image_size,
        given={name: getattr(source, name) for name in ("network", "depth", "growth_rate")},
    )


def read_network(run: SavedRun | WeightsFile) -> tuple[RunRecord | None, "DenseNet"]:
    """Read the network on the CPU, and the record of the run that belongs to its weights; None for a file.

    Raises:
        UserError: If the weights or the record cannot be used.
        RunError: If the weights are NaN or infinite.
    """
    return (None, run.network()) if isinstance(run, WeightsFile) else read_with_record(run.path, run.network)
