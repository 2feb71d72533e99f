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
from commands.run_record import read_with_record
from commands.saved_run import SavedRun
from data.datasets import load
from train import replicas, runtime
from train.run.open_folder import atomic_write

CONFUSION = "confusion.png"  # in the folder of the run


def evaluate_run(
    run: SavedRun,
    outputs: Outputs,
    *,
    data: Path | None,
    batch_size: int,
    threads: int | None,
    download: bool,
    calibrate: bool,
) -> None:
    """Measure the chosen weights of a run on its test images, print the report, and write what is asked for.

    A run that is not finished is measured at its last finished epoch. Nothing in its folder changes except
    confusion.png and calibration.json.

    Args:
        run: The run.
        outputs: The files to write.
        data: Folder of the data set. None: the folder that the run was given.
        batch_size: Images in a batch.
        threads: CPU threads for computation. None: torch decides.
        download: Fetch missing files of the data set.
        calibrate: Fit a temperature on the validation images, and write calibration.json.

    Raises:
        DataError: If the images cannot be read.
        UserError: If confusion.png, calibration.json, the weights or the data cannot be used.
        RunError: If the loss is NaN or infinite, no temperature fits, memory runs out, or a file cannot be written.
    """
    if not outputs.plot:
        require_replaceable(run.path / CONFUSION, instead="plot")
    settings = replace(run.settings, data=data or run.settings.data)
    runtime.use_threads(threads)
    runtime.be_deterministic()
    runtime.use_precision(settings.precision)
    device = runtime.pick_device()
    answers = Logits()
    with held(run.path) if calibrate else nullcontext() as folder:
        with memory_explained(larger_machine):
            record, network = read_with_record(run.path, run.network)
            weights = digest(network.state_dict()) if calibrate else ""
            calibration = None if calibrate else calibration_of(run.path, network)
            model = replicas.replicate(runtime.placed(network, device), device, precision=settings.precision).evaluation
        with memory_explained(smaller_batch(batch_size)):
            source = load(
                settings.dataset,
                folder=settings.data,
                download=download,
                image_size=settings.pixels,
                notify=outputs.say,
            )
            run.require_classes(source.classes)
            subject = Subject(run, model, source, device, batch_size)
            if calibrate:
                calibration = fit_calibration(*subject.validation_logits(), weights=weights)
            report = subject.measure(calibration, *([answers] if outputs.predictions else []))
        title = f"{settings.title}, {record.progress()}"
        files = {outputs.csv: report.as_csv()}
        if outputs.predictions:
            files[outputs.predictions] = as_npz(*answers.read(), classes=source.classes, paths=source.test.names())
        outputs.deliver(
            [title, report.summary(), record.verdict(report.error), "", *report.as_text().split("\n"), ""],
            files,
            json=as_json(report, run, record, device=runtime.describe_device(device)) if outputs.json else "",
        )
        _write_plot(report, run.path, title, outputs)
        if folder and calibration:
            outputs.say(write_calibration(calibration, folder))


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
