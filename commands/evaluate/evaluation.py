"""Evaluate the chosen weights of a run on its test images: measure, print the report, write table and plot."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from commands.evaluate.confusion_counts import count_confusions
from commands.evaluate.plot import draw_confusion
from commands.evaluate.report import Report
from commands.memory import larger_machine, memory_explained, smaller_batch
from commands.outputs import print_and_write, require_replaceable, write_new
from commands.run_record import RunRecord, read_with_record
from commands.saved_run import SavedRun
from commands.settings import TrainSettings
from commands.weights_file import WeightsFile
from data.datasets import DATASETS, load
from data.loader import make_test_loader
from train import cpu_contention, replicas, runtime
from train.byte_bar import ByteBar
from train.run.open_folder import atomic_write
from train.terminal import say

CONFUSION = "confusion.png"  # in the folder of the run


def evaluate_run(
    run: SavedRun | WeightsFile,
    *,
    data: Path | None,
    batch_size: int,
    threads: int | None,
    download: bool,
    data_url: str | None,
    plot: Path | None,
    csv: Path | None,
) -> None:
    """Measure the chosen weights of a run on its test images, print the report, and write the confusion matrix.

    A run that is not finished is measured at its last finished epoch. Nothing in its folder changes except
    confusion.png.

    Args:
        run: The run, or a file of weights.
        data: Folder of the data set. None: the folder that the run was given.
        batch_size: Images in a batch.
        threads: CPU threads for computation. None: torch decides.
        download: Fetch missing files of the data set.
        data_url: Folders on servers to fetch them from, with commas between them. None: those of the run.
        plot: New PNG file for the confusion matrix. None: confusion.png in the folder of the run, which is replaced.
            A file of weights then gets no plot.
        csv: New CSV file for the classes and the confusion matrix. None: no such file.

    Raises:
        DataError: If the test images cannot be read.
        UserError: If confusion.png, the weights or the classes of the data cannot be used.
        RunError: If the loss is NaN or infinite, memory runs out, or a file cannot be written.
    """
    if not plot and isinstance(run, SavedRun):
        require_replaceable(run.path / CONFUSION, instead="plot")
    settings = replace(run.settings, data=data or run.settings.data, data_url=data_url or run.settings.data_url)
    runtime.use_threads(threads)
    runtime.be_deterministic()
    runtime.use_precision(settings.precision)
    device = runtime.pick_device()
    with memory_explained(larger_machine):
        record, loaded = _read(run)
        network = runtime.placed(loaded, device)
    with memory_explained(smaller_batch(batch_size)):
        report = _measure(run, network, device, settings, download=download, batch_size=batch_size)
    title = f"{settings.title}, {record.progress()}"
    lines = [title, report.summary(), record.verdict(report.error), "", *report.as_text().split("\n"), ""]
    print_and_write(lines, {csv: report.as_csv()})
    if plot or isinstance(run, SavedRun):
        _write_plot(report, run.path, title, plot)


def _read(run: SavedRun | WeightsFile) -> tuple[RunRecord | WeightsFile, nn.Module]:
    """Read the network together with what says where its weights are from and which test error is recorded."""
    if isinstance(run, WeightsFile):
        return run, run.network()
    return read_with_record(run.path, run.network)


def _measure(
    run: SavedRun | WeightsFile,
    network: nn.Module,
    device: torch.device,
    settings: TrainSettings,
    *,
    download: bool,
    batch_size: int,
) -> Report:
    """Measure a network, which lies on a device, on the test images of its run; `settings` say where they are."""
    model = replicas.replicate(network, device, precision=settings.precision).evaluation
    source = load(
        settings.dataset,
        folder=settings.data,
        download=download,
        image_size=settings.pixels,
        channels=settings.in_channels,
        mirrors=settings.data_url,
        notify=say,
        bar=ByteBar,
    )
    run.require_classes(source.classes)
    spec = replace(DATASETS[settings.dataset], mean=run.mean, std=run.std)
    batches = make_test_loader(source, spec, device, batch_size=batch_size)
    with cpu_contention.warn_if_busy(device):
        counts = count_confusions(model, batches, num_classes=len(source.classes))
    return Report.from_counts(counts, source.classes)


def _write_plot(report: Report, folder: Path, title: str, plot: Path | None) -> None:
    """Write the confusion matrix to a new file, or into the folder of the run."""
    image = draw_confusion(report.confusion, report.classes, title=[str(folder), title, report.summary()])
    if plot:
        write_new(plot, image)
        say(f"The confusion matrix is in {plot}.")
    else:
        atomic_write(folder / CONFUSION, lambda file: file.write(image))
        say(f"The confusion matrix is in {folder / CONFUSION}; the next evaluation replaces it.")
