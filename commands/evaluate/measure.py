"""Measure the network of a run on its test images, and read its logits of the validation images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from commands.calibration import Calibration
from commands.evaluate.classify import Listener, Logits, classify
from commands.evaluate.confusion_counts import ConfusionCounts
from commands.evaluate.reliability import Reliability, ReliabilityCounts
from commands.evaluate.report import Report
from commands.saved_run import SavedRun
from commands.weights_file import WeightsFile
from data.datasets import DATASETS, DatasetSpec
from data.loader import make_test_loader, make_validation_loader
from data.splits import Dataset
from train import cpu_contention
from train.errors import UserError
from train.run.config import CONFIG, require_recorded_data


@dataclass(frozen=True)
class Subject:
    """A network that is measured, with the images of its data set.

    Attributes:
        run: The run, or the file of weights.
        model: Maps images (n, I, H, W) to logits (n, C), on the device.
        source: Data set of the run, with the classes of the run.
        device: The device.
        batch_size: Images in a batch.
    """

    run: SavedRun | WeightsFile
    model: nn.Module
    source: Dataset
    device: torch.device
    batch_size: int

    def measure(self, calibration: Calibration | None, *also: Listener) -> Report:
        """Classify the test images, and report on the answers.

        Args:
            calibration: A temperature to report on as well.
            also: Further listeners to the answers.

        Raises:
            RunError: If the loss is NaN or infinite.
        """
        classes = self.source.classes
        batches = make_test_loader(self.source, self._spec, self.device, batch_size=self.batch_size)
        confusions = ConfusionCounts.zeros(len(classes), self.device)
        temperatures = [1.0] + ([calibration.temperature] if calibration else [])
        counts = [ReliabilityCounts.zeros(self.device, temperature=temperature) for temperature in temperatures]
        with cpu_contention.warn_if_busy(self.device):
            classify(self.model, batches, confusions, *counts, *also)
        return Report.from_counts(confusions, classes, *map(Reliability.from_counts, counts))

    @property
    def _spec(self) -> DatasetSpec:
        """How the images are prepared: as the run has prepared them."""
        return replace(DATASETS[self.run.settings.dataset], mean=self.run.mean, std=self.run.std)

    def validation_logits(self) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and labels (N,) of the images that the run held out for validation, on the CPU.

        Raises:
            UserError: If there are none, the seed that chose them is not known, or the training images are not as many
                as those that the run began with.
        """
        settings, source = self.run.settings, self.source
        if settings.seed is None:
            raise UserError(
                f"{self.run.path / CONFIG} names no seed, without which its validation images are not known"
            )
        require_recorded_data(self.run.path, classes=source.classes, sizes=source.sizes())
        batches = make_validation_loader(
            source,
            self._spec,
            self.device,
            batch_size=self.batch_size,
            valid_size=settings.valid_size,
            seed=settings.seed,
        )
        if batches is None:
            raise UserError(f"--calibrate True needs validation images, but the run in {self.run.path} held out none")
        logits = Logits()
        with cpu_contention.warn_if_busy(self.device):
            classify(self.model, batches, logits, name="validation images")
        return logits.read()
