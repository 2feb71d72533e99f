"""Evaluate the chosen weights of a run on its test images: measure, print the report, write files and the plot."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from commands.calibration import calibration_of, digest
from commands.evaluate.calibrate import fit_calibration, held, write_calibration
from commands.evaluate.classify import Logits
from commands.evaluate.formats import as_json, as_npz
from commands.evaluate.measure import Subject
from commands.evaluate.outputs import Outputs
from commands.evaluate.plot import draw_report
from commands.evaluate.report import Report
from commands.memory import larger_machine, memory_explained, smaller_batch
from commands.outputs import require_replaceable, write_new
from commands.saved_run import SavedRun
from commands.trained import read_network
from commands.weights_file import WeightsFile
from data.datasets import load
from train import replicas, runtime
from train.byte_bar import ByteBar
from train.run.open_folder import atomic_write

CONFUSION = "confusion.png"  # in the folder of the run


def evaluate_run(
    run: SavedRun | WeightsFile,
    outputs: Outputs,
    *,
    data: Path | None,
    batch_size: int,
    threads: int | None,
    download: bool,
    data_url: str | None,
    calibrate: bool,
) -> None:
    """Measure the chosen weights of a run on its test images, print the report, and write what is asked for.

    A run that is not finished is measured at its last finished epoch. Nothing in its folder changes except
    confusion.png and calibration.json.

    Args:
        run: The run, or a file of weights.
        outputs: The files to write.
        data: Folder of the data set. None: the folder that the run was given.
        batch_size: Images in a batch.
        threads: CPU threads for computation. None: torch decides.
        download: Fetch missing files of the data set.
        data_url: Folders on servers to fetch them from, with commas between them. None: those of the run.
        calibrate: Fit a temperature on the validation images, and write calibration.json.

    Raises:
        DataError: If the images cannot be read.
        UserError: If confusion.png, calibration.json, the weights or the data cannot be used.
        RunError: If the loss is NaN or infinite, no temperature fits, memory runs out, or a file cannot be written.
    """
    if not outputs.plot and isinstance(run, SavedRun):
        require_replaceable(run.path / CONFUSION, instead="plot")
    settings = replace(run.settings, data=data or run.settings.data, data_url=data_url or run.settings.data_url)
    runtime.use_threads(threads)
    runtime.be_deterministic()
    runtime.use_precision(settings.precision)
    device = runtime.pick_device()
    answers = Logits()
    with held(run.path) if calibrate else nullcontext() as folder:
        with memory_explained(larger_machine):
            record, network = read_network(run)
            weights = digest(network.state_dict()) if calibrate else ""
            calibration = None if calibrate else calibration_of(run, network)
            model = replicas.replicate(runtime.placed(network, device), device, precision=settings.precision).evaluation
        with memory_explained(smaller_batch(batch_size)):
            source = load(
                settings.dataset,
                folder=settings.data,
                download=download,
                image_size=settings.pixels,
                channels=settings.in_channels,
                mirrors=settings.data_url,
                notify=outputs.say,
                bar=ByteBar,
            )
            run.require_classes(source.classes)
            if isinstance(run, WeightsFile):
                run.require_normalisation(source.test)
            subject = Subject(run, model, source, device, batch_size)
            if calibrate:
                calibration = fit_calibration(*subject.validation_logits(), weights=weights)
            report = subject.measure(calibration, *([answers] if outputs.predictions else []))
        origin = record or run
        assert not isinstance(origin, SavedRun), "a run has a record"
        title = f"{settings.title}, {origin.progress()}"
        files = {outputs.csv: report.as_csv()}
        if outputs.predictions:
            files[outputs.predictions] = as_npz(*answers.read(), classes=source.classes, paths=source.test.names())
        written = write_calibration(calibration, folder) if folder and calibration else ""
        outputs.deliver(
            [title, report.summary(), origin.verdict(report.error), "", *report.as_text().split("\n"), ""],
            files,
            json=as_json(report, run, record, network, device=runtime.describe_device(device)) if outputs.json else "",
        )
        if outputs.plot or isinstance(run, SavedRun):
            _write_plot(report, run.path, title, outputs)
        if written:
            outputs.say(written)


def _write_plot(report: Report, folder: Path, title: str, outputs: Outputs) -> None:
    """Write the plot to a new file, or into the folder of the run."""
    image = draw_report(report, title=[str(folder), title, report.summary()])
    if outputs.plot:
        write_new(outputs.plot, image)
        outputs.say(f"Confusion matrix and reliability diagram are in {outputs.plot}.")
    else:
        atomic_write(folder / CONFUSION, lambda file: file.write(image))
        outputs.say(
            f"Confusion matrix and reliability diagram are in {folder / CONFUSION}; the next evaluation replaces it."
        )
