"""A model card: Markdown for people, after a block of YAML that the model hub of Hugging Face reads.

The value of each key in that block is JSON, which is YAML too.

References:
    https://huggingface.co/docs/hub/model-cards
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from commands.calibration import Calibration
from commands.provenance import VERSION
from commands.run_record import RunRecord
from commands.saved_run import SavedRun
from commands.settings import TrainSettings
from commands.tables import plain
from commands.weights_file import WeightsFile
from data.datasets import DATASETS
from data.decode import COLOURS
from data.digests import file_digests
from train.program_name import IS_PACKAGE, PYTHON_WORDS
from train.run.config import counts, read_config
from train.run.history import best_row

PROGRAM = f'"DenseNets that fit", version {VERSION}'
HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn"}
START = " ".join(PYTHON_WORDS)
PACKAGE = "densenets" if IS_PACKAGE else "models"
MOST_CLASSES = 20  # that are listed
PAPER = """@inproceedings{huang2017densely,
  title = {Densely Connected Convolutional Networks},
  author = {Huang, Gao and Liu, Zhuang and van der Maaten, Laurens and Weinberger, Kilian Q.},
  booktitle = {CVPR},
  year = {2017}
}"""
LOAD = """import torch
from safetensors.torch import load_file

from {package} import DenseNet, load_weights

network = DenseNet({arguments})
load_weights(network, load_file({file}))
network.eval()
mean, std = (torch.tensor(channels).view(-1, 1, 1) for channels in ({mean}, {std}))
pixels = torch.rand(1, {channels}, {size}, {size})  # an image: {colours}from 0 to 1
with torch.no_grad():
    logits = network((pixels - mean) / std)"""


def model_card(
    run: SavedRun | WeightsFile,
    record: RunRecord | None,
    arguments: Mapping[str, Any],
    calibration: Calibration | None = None,
    *,
    file: str,
    parameters: int,
) -> str:
    """Describe a file of weights: what it computes and how well, how to load it, and where it comes from.

    Args:
        run: The run whose weights they are, or the file that they come from.
        record: The record of the run; None for a file.
        arguments: Arguments of `DenseNet`, by name.
        calibration: A temperature for the logits, if one was fitted.
        file: Name of the file.
        parameters: Number of parameters.
    """
    settings = run.settings
    names = f": {', '.join(map(plain, run.classes))}" if len(run.classes) <= MOST_CLASSES else ""
    sections = [
        _front_matter(settings, _test_error(record)),
        f"# {settings.title}",
        f"A DenseNet with {parameters:,} parameters, which classifies images of {settings.pixels}x{settings.pixels} "
        f"pixels into {len(run.classes):,} classes{names}.",
        *_results(record),
        "## How to load it",
        f"With the folder `models/` of the program {PROGRAM}, and the packages torch and safetensors:",
        _fenced(_load(run, arguments, file), "python"),
        *_temperature(calibration),
        "With the whole program:",
        _fenced(_commands(settings, file)),
        *_data(run),
        *(_training(run) if isinstance(run, SavedRun) else _unknown_training(run)),
        "## Citation",
        _fenced(PAPER, "bibtex"),
    ]
    return "\n\n".join(sections) + "\n"


def _test_error(record: RunRecord | None) -> float | None:
    """The test error, if the run is finished and has seen all test images."""
    is_whole = record is not None and record.flags.get("limit_batches") is None
    return record.test_error if record is not None and is_whole else None


def _front_matter(settings: TrainSettings, test_error: float | None) -> str:
    hub_name = HUB_NAMES.get(settings.dataset)
    values: dict[str, Any] = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "densenet", "pytorch", "safetensors"],
    }
    if hub_name:
        values["datasets"] = [hub_name]
    if test_error is not None:
        accuracy = {"type": "accuracy", "value": round(1 - test_error, 6), "name": "test accuracy"}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": settings.dataset, "type": hub_name or settings.dataset, "split": "test"},
            "metrics": [accuracy],
        }
        values |= {"metrics": ["accuracy"], "model-index": [{"name": settings.title, "results": [result]}]}
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "# license: whoever publishes these weights chooses one", "---"])


def _results(record: RunRecord | None) -> list[str]:
    """The errors that a run has recorded."""
    best = best_row(record.rows) if record else None
    if record is None or best is None:
        return []
    if record.flags.get("limit_batches") is not None:
        return ["## Results", "None: a dry run with --limit_batches, for which no error means anything."]
    errors = {"validation": best.kept_error, "test": record.test_error}
    rows = [(name, f"{error:.2%}") for name, error in errors.items() if error is not None]
    table = [_table(("images", "error"), rows)] if rows else []
    return ["## Results", *table, f"One run with seed {plain(record.flags.get('seed'))}: {record.progress()}."]


def _temperature(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return []
    return [
        f"Probabilities are better calibrated as `(logits / {calibration.temperature!r}).softmax(1)`: this temperature "
        f"was fitted on {calibration.images:,} validation images."
    ]


def _load(run: SavedRun | WeightsFile, arguments: Mapping[str, Any], file: str) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    colours = COLOURS.get(run.settings.in_channels)
    return LOAD.format(
        package=PACKAGE,
        arguments=given,
        file=json.dumps(file),
        mean=run.mean,
        std=run.std,
        size=run.settings.pixels,
        channels=run.settings.in_channels,
        colours=f"{colours}, " if colours else "",
    )


def _commands(settings: TrainSettings, file: str) -> str:
    """The command lines that evaluate and use the file."""
    size = f" --image_size {settings.pixels}" if DATASETS[settings.dataset].free_size else ""
    source = f"--weights {shlex.quote(file)} --dataset {settings.dataset}{size}"
    data = " --data <folder>" if DATASETS[settings.dataset].needs_folder else ""
    return f"{START} evaluate {source}{data}\n{START} predict <image> {source}"


def _data(run: SavedRun | WeightsFile) -> list[str]:
    """The data set: its images, its normalisation and the digests of its files."""
    rows = [("data set", run.settings.dataset)]
    if isinstance(run, SavedRun):
        rows += [(f"{use} images", f"{number:,}") for use, number in _num_images(run).items() if number]
    rows += [("mean", f"{run.mean}"), ("standard deviation", f"{run.std}")]
    rows += [(f"md5 of {name}", digest) for name, digest in file_digests(run.settings.dataset).items()]
    return ["## Data", _table(("data", "value"), rows)]


def _num_images(run: SavedRun) -> dict[str, int]:
    try:
        return counts(read_config(run.path) or {}, "images")
    except ValueError:
        return {}


def _training(run: SavedRun) -> list[str]:
    """The flags that decide the results of a run, and the versions of all that it ran on."""
    flags, defaults = run.origin()["flags"], TrainSettings.defaults()
    changed = [f"--{name} {shlex.quote(str(flags[name]))}" for name in flags if flags[name] != defaults.get(name)]
    data = ["--data <folder>"] if DATASETS[run.settings.dataset].needs_folder else []
    line = " ".join([START, *changed, *data, "--save <folder>"])
    versions = [(plain(name), plain(version)) for name, version in run.versions.items()]
    device = (read_config(run.path) or {}).get("device")
    rows = [
        *versions,
        ("commit of the program", plain(run.git_revision or "not known", longest=60)),
        ("device", plain(device)),
    ]
    return [
        "## Training",
        _fenced(line),
        _table(("flag", "value"), [(name, plain(value)) for name, value in flags.items() if value is not None]),
        _table(("version", "value"), rows),
    ]


def _unknown_training(run: WeightsFile) -> list[str]:
    source = run.origin()["weights"]
    return [
        "## Training",
        f"The weights were in a file whose training is not known: {plain(source['file'])}, SHA-256 {source['sha256']}.",
    ]


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {first} | {second} |" for first, second in [head, ("---", "---"), *cells])


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"
