"""`demo.py export`: its flags and help."""

from pathlib import Path
from typing import Literal

from commands.export.formats import CARD, FORMATS
from commands.line.flags import Command, flag, settings
from commands.outputs import require_new
from commands.requirements import require_packages
from commands.settings import DEBUG_HELP, THREADS_HELP, Threads
from commands.trained import TrainedSettings, read_trained
from train.errors import UserError


@settings
class ExportSettings(TrainedSettings):
    """Flags of the command export."""

    format: Literal["torch", "onnx", "safetensors"] = flag(
        "torch writes a .pt2 file for torch.export.load, onnx an .onnx file for ONNX Runtime and others, for which it "
        "needs the packages onnx, onnxscript and onnxruntime. safetensors writes the weights alone, and a model card "
        "README.md beside them."
    )
    output: Path | None = flag(
        "The new file. None: model.pt2, model.onnx or model.safetensors in the folder of the run, or a file beside "
        "--weights. A file that exists is refused.",
        default=None,
    )
    threads: Threads | None = flag(THREADS_HELP, default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def export(settings: ExportSettings) -> None:
    """Write the network of a run, or of --weights, as one file for other programs.

    The formats torch and onnx need none of this code. The file takes images: float32 (N, C, H, W) of the run's size and
    channels (RGB if these are 3), pixels from 0 to 1 and not normalised, for any number N of them. It returns logits:
    float32 (N, classes). The normalisation of the run is part of it. If "evaluate --calibrate True" has left a
    temperature for these weights in the folder of the run, the logits are divided by it, and a line says so. The
    weights are those in model.pt, and plain modules run, whatever --efficient was. Before the file gets its name it is
    read back, by ONNX Runtime if it is ONNX, and its logits are compared with the network's own; if they differ by more
    than rounding, the exit code is 1 and there is no file.

    A safetensors file holds the weights by their names in this program, without normalisation and temperature.
    README.md beside it is a model card for a model hub: results, how to load the weights, data with digests, flags and
    versions. The file is read back and compared too, and --weights and --init_weights take it.

    Each file also holds texts in JSON: "classes" (names in the order of the logits), "mean", "std", "image_size",
    "preprocessing" (the steps by which the command predict turns an image of any size into such an input, in their
    order), "temperature" (the number by which the file's logits are divided; 1.0 if they are not), and "origin" (flags
    that decide results, versions of packages, git revision; no folders). In an ONNX file they are metadata_props, in a
    safetensors file its metadata; torch.export.load returns them as extra_files, and its result has module() to call.
    """
    suffix, packages = FORMATS[settings.format].suffix, FORMATS[settings.format].packages
    require_packages(*packages, flag="format", value=settings.format)
    run = read_trained(settings)
    output = settings.output or _default_output(settings, suffix)
    require_new(output, flag="output", suffix=suffix)
    card = output.with_name(CARD)
    if FORMATS[settings.format].has_card and card.exists():
        raise UserError(f"the model card {card} exists already; choose another folder by --output")
    from commands.export.network import export_run  # torch takes seconds to import

    export_run(run, output, format=settings.format, threads=settings.threads)


def _default_output(settings: ExportSettings, suffix: str) -> Path:
    """The file beside the weights that are exported: model.pt2 in a run, name.pt2 beside name.pth."""
    if settings.save is not None:
        return settings.save / f"model{suffix}"
    assert settings.weights is not None, "one of them is given"
    return settings.weights.with_suffix(suffix)


COMMAND = Command(ExportSettings, export)
