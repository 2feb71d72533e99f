"""A report on a test set as JSON, and the answers of the network to all images as NumPy arrays."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import Tensor, nn

from commands.evaluate.reliability import Reliability
from commands.evaluate.report import Report
from commands.provenance import VERSION, command_line, git_revision, versions
from commands.run_record import RunRecord
from commands.saved_run import SavedRun
from commands.weights_file import WeightsFile
from train.run.history import best_row, chooses_average

FORMAT = 1  # of the JSON file; a new key does not change it


def as_json(
    report: Report,
    run: SavedRun | WeightsFile,
    record: RunRecord | None,
    network: nn.Module,
    *,
    device: str,
) -> str:
    """Return a report with everything that is needed to compare it with others, a key on each line.

    Args:
        report: The report.
        run: The run whose weights were measured, or the file that they come from.
        record: The run's record of itself; None for a file.
        network: The network.
        device: Description of the device.
    """
    best = best_row(record.rows) if record else None
    content: dict[str, Any] = {
        "format": FORMAT,
        "network": run.settings.network_settings.title,
        "dataset": run.settings.dataset,
        "seed": run.settings.seed,
        "epoch": best.epoch if best else None,
        "is_averaged": chooses_average(best, has_average=bool(run.settings.ema)) if best else None,
        "n_epochs": record.n_epochs if record else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "split": "test",
        "images": report.images,
        "error": report.error,
        "recorded_error": record.test_error if record else None,
        "top5_error": report.top5_error,
        **_reliability(report.reliability),
        "calibrated": _reliability(report.calibrated) if report.calibrated else None,
        "classes": [
            {"class": report.classes[row.label], "images": row.images, "accuracy": row.accuracy} for row in report.rows
        ],
        "confusion": report.confusion.tolist(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": versions(),
        "version": VERSION,
        "git_revision": git_revision(),
        "command_line": command_line(),
        "origin": run.origin(),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    # The only character of ASCII that JSON leaves as it is and that is not printable; class names may have it.
    return "\n".join(["{", ",\n".join(lines), "}"]).replace("\x7f", "\\u007f")


def _reliability(reliability: Reliability) -> dict[str, Any]:
    return {
        "temperature": reliability.temperature,
        "negative_log_likelihood": reliability.loss,
        "calibration_error": reliability.calibration_error,
        "average_confidence": reliability.confidence,
        "bins": [asdict(one) for one in reliability.bins],
    }


def as_npz(logits: Tensor, labels: Tensor, *, classes: tuple[str, ...], paths: Sequence[str]) -> bytes:
    """Return a file for `numpy.load`, without pickles: a row for each test image, in the order of the data set.

    Args:
        logits: (N, C) on the CPU, as the network gives them, without a temperature.
        labels: int64 (N,).
        classes: Names of the C classes.
        paths: Paths of the N images, below the folder that they have in common; empty for images that are no files.
    """
    arrays: dict[str, Any] = {
        "logits": logits.float().numpy(),
        "labels": labels.numpy(),
        "classes": np.array(classes),
        "paths": np.array([path.removeprefix(os.sep) for path in paths], dtype=str),
    }
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
