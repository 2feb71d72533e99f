"""`demo.py export`: its flags and help."""

from pathlib import Path
from typing import Literal

from commands.export.formats import FORMATS
from commands.line.flags import Command, Settings, flag, settings
from commands.outputs import require_new
from commands.requirements import require_packages
from commands.saved_run import read_saved_run
from commands.settings import DEBUG_HELP, THREADS_HELP, Threads


@settings
class ExportSettings(Settings):
    """Flags of the command export."""

    save: Path = flag("Folder of the run.")
    format: Literal["torch", "onnx"] = flag(
        "torch writes a .pt2 file for torch.export.load, onnx an .onnx file for ONNX Runtime and others. The latter "
        "needs the packages onnx, onnxscript and onnxruntime."
    )
    output: Path | None = flag(
        "The new file. None: model.pt2 or model.onnx in the folder of the run. A file that exists is refused.",
        default=None,
    )
    threads: Threads | None = flag(THREADS_HELP, default=None)
    debug: bool = flag(DEBUG_HELP, default=False)


def export(settings: ExportSettings) -> None:
    """Write the network of a run as one file that needs none of this code: for torch.export, or for ONNX.

    The file takes images: float32 (N, 3, H, W) of the run's size, RGB, pixels from 0 to 1 and not normalised, for any
    number N of them. It returns logits: float32 (N, classes). The normalisation of the run is part of it. If "evaluate
    --calibrate True" has left a temperature for these weights in the folder of the run, the logits are divided by it,
    and a line says so. The weights are those in model.pt, and plain modules run, whatever --efficient was. Before the
    file gets its name it is read back, by ONNX Runtime if it is ONNX, and its logits are compared with the network's
    own; if they differ by more than rounding, the exit code is 1 and there is no file.

    The file also holds texts, each of them JSON: "classes" (names in the order of the logits), "mean", "std",
    "image_size", "preprocessing" (the steps by which the command predict turns an image of any size into such an
    input, in their order), "temperature" (1.0 where the logits are not divided), and "origin" (flags that decide
    results, versions of packages, git revision; no folders). In an ONNX file they are metadata_props;
    torch.export.load returns them as extra_files, and its result has module() to call.
    """
    suffix, packages = FORMATS[settings.format].suffix, FORMATS[settings.format].packages
    require_packages(*packages, flag="format", value=settings.format)
    run = read_saved_run(settings.save)
    output = settings.output or settings.save / f"model{suffix}"
    require_new(output, flag="output", suffix=suffix)
    from commands.export.network import export_run  # torch takes seconds to import

    export_run(run, output, format=settings.format, threads=settings.threads)


COMMAND = Command(ExportSettings, export)
